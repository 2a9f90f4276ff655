"""A hundred policies that must never take effect, each with the sentence that says why."""

from tests.documents import Broken

ENVELOPE = "apiVersion: penstock/v1\nkind: RoutingPolicy\nmetadata: {name: broken}\n"


def spec(text: str) -> str:
    return f"{ENVELOPE}spec: {text}\n"


def classes(text: str) -> str:
    return spec(f"{{classes: [{text}]}}")


def placement(text: str) -> str:
    return spec(f"{{placement: {text}}}")


# No YAML, or none that is taken.
UNREADABLE = {
    "empty": Broken("", "this is no policy: begin with 'apiVersion: penstock/v1'"),
    "a comment": Broken("# later\n", "this is no policy"),
    "a list": Broken("- apiVersion: penstock/v1\n", "this is no policy"),
    "a text": Broken("penstock", "this is no policy"),
    "an open bracket": Broken(ENVELOPE + "spec: {", "is not valid YAML: while parsing a flow"),
    "a tab": Broken(ENVELOPE + "spec:\n\tqueue: {}\n", "found character '\\t' that cannot start"),
    "a key twice": Broken(ENVELOPE + "kind: RoutingPolicy\n", "'kind' is given twice (line 4,"),
    "a setting twice": Broken(
        spec("{queue: {stretch: 1, stretch: 2}}"), "'stretch' is given twice (line 4, column"
    ),
    "an alias": Broken(
        spec("{classes: [&a {name: a}, *a]}"), "'*a' is an alias: write out what it means"
    ),
    "a merge": Broken(
        spec("{queue: &q {stretch: 1}, admission: {<<: *q}}"), "'*q' is an alias: write out"
    ),
    "a bomb": Broken(
        "a: &a [x, x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\n" + spec("{classes: *c}"),
        "'*a' is an alias",
    ),
    "a tag": Broken(spec("!!python/object/apply:os.system ['true']"), "could not determine a"),
    "two documents": Broken(spec("{}") + "---\n" + spec("{}"), "expected a single document"),
    "a control character": Broken(spec('{placement: {rule: "\0"}}'), "unacceptable character"),
    "no UTF-8": Broken(ENVELOPE.encode() + b"spec: {x: \xff}\n", "is not valid YAML"),
    "too large": Broken(
        ENVELOPE + "#" * (64 << 10), "bytes, more than 65536: give a configuration file."
    ),
    "too deep": Broken(spec("[" * 400), "is not valid YAML"),
    "a list as key": Broken(spec("{? [a] : 1}"), "found unhashable key"),
    "a huge number": Broken(spec("{queue: {stretch: " + "9" * 5000 + "}}"), "is not valid YAML"),
    "a date": Broken(classes("{name: 2026-01-01}"), "put quotes around"),
}

# A schema sees these, too.
MISSHAPEN = {
    "no apiVersion": Broken("kind: RoutingPolicy\nspec: {}\n", "this is no policy"),
    "no kind": Broken("apiVersion: penstock/v1\nspec: {}\n", "this is no policy"),
    "another version": Broken(
        spec("{}").replace("v1", "v2"), "'apiVersion' is \"penstock/v2\": give 'penstock/v1'."
    ),
    "another kind": Broken(
        spec("{}").replace("RoutingPolicy", "EndpointPickerConfig"),
        "'kind' is \"EndpointPickerConfig\": give 'RoutingPolicy'.",
    ),
    "no metadata": Broken(
        "apiVersion: penstock/v1\nkind: RoutingPolicy\nspec: {}\n",
        "'metadata' is missing: it has no default.",
    ),
    "empty metadata": Broken(
        "apiVersion: penstock/v1\nkind: RoutingPolicy\nmetadata:\nspec: {}\n",
        "'metadata' is null: give keys with values.",
    ),
    "no name": Broken(
        spec("{}").replace("{name: broken}", "{}"), "'metadata.name' is missing: it has no default."
    ),
    "a number as name": Broken(
        spec("{}").replace("broken", "1"), "'metadata.name' is 1: give a valid string, in quotes."
    ),
    "a capital in the name": Broken(
        spec("{}").replace("broken", "Broken"),
        "'metadata': 'Broken' is no name of a policy: give lower-case letters, digits and '-'",
    ),
    "a long name": Broken(spec("{}").replace("broken", "b" * 64), "'metadata': 'bbbb"),
    "an empty name": Broken(spec("{}").replace("broken", "''"), "'' is no name of a policy"),
    "a name that ends in '-'": Broken(spec("{}").replace("broken", "a-"), "'a-' is no name"),
    "a namespace": Broken(
        spec("{}").replace("broken", "a, namespace: b"),
        "'namespace' in 'metadata' is an unknown key: did you mean 'name'?",
    ),
    "no spec": Broken(ENVELOPE, "'spec' is missing: it has no default."),
    "an empty spec": Broken(ENVELOPE + "spec:\n", "'spec' is null: give keys with values."),
    "a list as spec": Broken(spec("[]"), "'spec' is []: give keys with values."),
    "a status": Broken(spec("{}") + "status: {}\n", "'status' is an unknown key"),
    "a misspelt section": Broken(
        spec("{clases: []}"), "'clases' in 'spec' is an unknown key: did you mean 'classes'?"
    ),
    "a section of the router's own file": Broken(
        spec("{hashGrain: 16}"), "'hashGrain' in 'spec' is an unknown key: known are classes, def"
    ),
    "classes by name": Broken(
        spec("{classes: {interactive: {ttft: 1s}}}"), "'spec.classes' is {\"interactive\""
    ),
    "a text as class": Broken(classes("interactive"), "'spec.classes[0]' is \"interactive\": give"),
    "a class without name": Broken(
        classes("{ttft: 1s}"), "'spec.classes[0].name' is missing: it has no default."
    ),
    "a class called no": Broken(
        classes("{name: no}"), "'spec.classes[0].name' is false: give a valid string, in quotes."
    ),
    "a class with a blank": Broken(
        classes("{name: very fast}"), "'spec.classes[0]': 'very fast' is no name of a class"
    ),
    "snake case": Broken(
        classes("{name: a, ttft_s: 2s}"),
        "'ttft_s' in 'spec.classes[0]' is an unknown key: did you mean 'ttft'?",
    ),
    "a duration without unit": Broken(
        classes("{name: a, ttft: 2}"),
        "'spec.classes[0].ttft' is 2: give a duration, as 750ms or 2s.",
    ),
    "a duration that is a fraction without unit": Broken(
        classes("{name: a, itl: 0.05}"), "'spec.classes[0].itl' is 0.05: give a duration"
    ),
    "a duration in quotes without unit": Broken(
        classes("{name: a, itl: '50'}"), "'spec.classes[0].itl' is '50': give a duration"
    ),
    "a duration of the clock": Broken(
        classes("{name: a, ttft: 1:30}"), "'spec.classes[0].ttft' is 90: give a duration"
    ),
    "a duration in words": Broken(
        classes("{name: a, ttft: 2 seconds}"), "'spec.classes[0].ttft' is '2 seconds': give"
    ),
    "a duration with a blank": Broken(
        classes("{name: a, ttft: 2 s}"), "'spec.classes[0].ttft' is '2 s': give a duration"
    ),
    "a duration of two units": Broken(
        classes("{name: a, ttft: 1m30s}"), "'spec.classes[0].ttft' is '1m30s': give a duration"
    ),
    "a negative duration": Broken(
        classes("{name: a, ttft: -1s}"), "'spec.classes[0].ttft' is '-1s': give a duration"
    ),
    "an endless duration": Broken(
        classes("{name: a, ttft: .inf}"), "'spec.classes[0].ttft' is Infinity: give a duration"
    ),
    "an unknown unit": Broken(
        classes("{name: a, ttft: 2parsec}"), "'spec.classes[0].ttft' is '2parsec': give a"
    ),
    "no duration": Broken(
        classes("{name: a, ttft: null}"), "'spec.classes[0].ttft' is null: give a duration"
    ),
    "a text as weight": Broken(
        classes("{name: a, weight: heavy}"),
        "'spec.classes[0].weight' is \"heavy\": give a valid number.",
    ),
    "a weight of the old notation": Broken(
        classes("{name: a, weight: 1e3}"),
        "'spec.classes[0].weight' is text to YAML: write 1.0e+3.",
    ),
    "a truth as weight": Broken(
        classes("{name: a, weight: true}"), "'spec.classes[0].weight' is true: give a valid number."
    ),
    "a priority of a class": Broken(
        classes("{name: a, priority: 1}"), "'priority' in 'spec.classes[0]' is an unknown key"
    ),
    "a number as default class": Broken(
        spec("{defaultClass: 1}"), "'spec.defaultClass' is 1: give a valid string, in quotes."
    ),
    "a tenant without name": Broken(
        spec("{tenants: [{share: 1}]}"), "'spec.tenants[0].name' is missing"
    ),
    "a tenant's share in per cent": Broken(
        spec("{tenants: [{name: a, share: 5%}]}"),
        "'spec.tenants[0].share' is \"5%\": give a valid number.",
    ),
    "an unknown order": Broken(
        spec("{queue: {order: lifo}}"), "'spec.queue.order' is \"lifo\": give 'fifo' or 'deadline'."
    ),
    "an order in capitals": Broken(
        spec("{queue: {order: FIFO}}"), "'spec.queue.order' is \"FIFO\": give 'fifo' or 'deadline'."
    ),
    "a stretch with unit": Broken(
        spec("{queue: {stretch: 2s}}"), "'spec.queue.stretch' is \"2s\": give a valid number."
    ),
    "a truth in quotes": Broken(
        spec("{admission: {rejectsEarly: 'yes'}}"),
        "'spec.admission.rejectsEarly' is \"yes\": give a valid boolean.",
    ),
    "a quantile as number": Broken(
        spec("{admission: {quantile: 0.9}}"), "'spec.admission.quantile' is 0.9: give 'p50'"
    ),
    "an unknown quantile": Broken(
        spec("{admission: {quantile: p95}}"),
        "'spec.admission.quantile' is \"p95\": give 'p50', 'p90' or 'p99'.",
    ),
    "half a prompt in the queue": Broken(
        spec("{admission: {maxQueued: 10.5}}"), "'spec.admission.maxQueued' is 10.5: give a valid"
    ),
    "a misspelt limit": Broken(
        spec("{admission: {max_queued: 3}}"),
        "'max_queued' in 'spec.admission' is an unknown key: did you mean 'maxQueued'?",
    ),
    "sessions without unit": Broken(
        spec("{sessions: {ttl: 600}}"), "'spec.sessions.ttl' is 600: give a duration"
    ),
    "sessions switched by a word": Broken(
        spec("{sessions: off}"), "'spec.sessions' is false: give keys with values."
    ),
    "an unknown rule": Broken(
        placement("{rule: fastest}"), "'fastest' is no placement rule: choose from priced, moonc"
    ),
    "no rule": Broken(placement("{rule: null}"), "'spec.placement.rule' is null: give a valid"),
    "parameters as list": Broken(
        placement("{parameters: []}"), "'spec.placement.parameters' is []: give"
    ),
    "an unknown parameter": Broken(
        placement("{parameters: {mayFetc: true}}"),
        "'spec.placement': in the parameters of rule 'priced': 'mayFetc' is an unknown key: did you"
        " mean 'mayFetch'?",
    ),
    "a parameter in snake case": Broken(
        placement("{parameters: {may_fetch: true}}"),
        "'may_fetch' is an unknown key: did you mean 'mayFetch'?",
    ),
    "a parameter of another rule": Broken(
        placement("{rule: lmetric, parameters: {mayFetch: true}}"),
        "in the parameters of rule 'lmetric': 'mayFetch' is an unknown key",
    ),
    "a parameter of a wrong type": Broken(
        placement("{parameters: {mayFetch: 1}}"), "'mayFetch' is 1: give a valid boolean."
    ),
    "an unknown way to disaggregate": Broken(
        placement("{disaggregate: sometimes}"),
        "'spec.placement.disaggregate' is \"sometimes\": give 'auto', 'always' or 'never'.",
    ),
    "a way to disaggregate that YAML reads as false": Broken(
        placement("{disaggregate: off}"), "'spec.placement.disaggregate' is false: give 'auto'"
    ),
    "a shadow without policy": Broken(
        spec("{shadow: {sample: 10%}}"), "'spec.shadow.spec' is missing: it has no default."
    ),
    "a sample without unit": Broken(
        spec("{shadow: {sample: 0.1, spec: {}}}"),
        "'spec.shadow.sample' is 0.1: give a part of a whole, as 5%.",
    ),
    "a fault inside the shadow": Broken(
        spec("{shadow: {spec: {queue: {strech: 1}}}}"),
        "'strech' in 'spec.shadow.spec.queue' is an unknown key: did you mean 'stretch'?",
    ),
    "traffic without unit": Broken(
        spec("{canary: {traffic: 5}}"), "'spec.canary.traffic' is 5: give a part of a whole, as 5%."
    ),
    "an unknown guard": Broken(
        spec("{canary: {guards: {maxTtftP99Ratio: 2}}}"),
        "'maxTtftP99Ratio' in 'spec.canary.guards' is an unknown key: did you mean 'maxTtftP95R",
    ),
    "a guard in per cent": Broken(
        spec("{canary: {guards: {maxErrorRatio: 150%}}}"),
        "'spec.canary.guards.maxErrorRatio' is \"150%\": give a valid number.",
    ),
    "no guards as a word": Broken(
        spec("{canary: {guards: none}}"), "'spec.canary.guards' is \"none\": give keys with values."
    ),
}

# Only the parser sees these: bounds, and what does not fit together.
SENSELESS = {
    "no class": Broken(classes(""), "'spec': there is no class: give one, or leave 'classes' out."),
    "a class twice": Broken(
        classes("{name: a}, {name: a}"), "'spec': the class 'a' is given twice: leave one of them"
    ),
    "too many classes": Broken(
        classes(", ".join(f"{{name: c{i}}}" for i in range(17))), "17 are given for each class"
    ),
    "an unknown default class": Broken(
        spec("{classes: [{name: a}, {name: b}], defaultClass: c}"),
        "'spec': the default class 'c' is none of the classes: choose from a, b.",
    ),
    "no time for the first token": Broken(
        classes("{name: a, ttft: 0s}"),
        "'spec.classes[0]': the target of TTFT is 0 s: give one above 0, at most 86,400 s.",
    ),
    "two days for a token": Broken(
        classes("{name: a, itl: 48h}"), "the target of ITL is 172,800 s: give one above 0, at most"
    ),
    "no weight": Broken(
        classes("{name: a, weight: 0}"), "'spec.classes[0]': the weight is 0: give one above 0"
    ),
    "a negative weight": Broken(classes("{name: a, weight: -1}"), "the weight is -1: give one"),
    "a weight that is no number": Broken(
        classes("{name: a, weight: .nan}"), "'spec.classes[0].weight' is NaN: give a finite number."
    ),
    "an endless weight": Broken(
        classes("{name: a, weight: .inf}"), "'spec.classes[0].weight' is Infinity: give a finite"
    ),
    "a tenant twice": Broken(
        spec("{tenants: [{name: a}, {name: b}, {name: a}]}"), "the tenant 'a' is given twice"
    ),
    "a negative share": Broken(
        spec("{tenants: [{name: a, share: -1}]}"), "'spec.tenants[0]': the share is -1: give one"
    ),
    "a negative stretch": Broken(
        spec("{queue: {stretch: -0.5}}"), "'spec.queue': 'stretch' is -0.5: give one from 0"
    ),
    "no slack": Broken(
        spec("{admission: {slack: 0}}"), "'spec.admission': 'slack' is 0: give one above 0"
    ),
    "an empty queue": Broken(
        spec("{admission: {maxQueued: 0}}"),
        "'spec.admission': the longest queue is 0: give one from 1 to 10,000,000.",
    ),
    "sessions that last for ever": Broken(
        spec("{sessions: {ttl: 900h}}"), "a session's time to live is 3,240,000 s: give one above"
    ),
    "no sessions by their number": Broken(
        spec("{sessions: {maxSessions: 0}}"), "the number of sessions is 0: give one from 1"
    ),
    "a negative weight of what is evicted": Broken(
        placement("{parameters: {evictionWeight: -1}}"),
        "in the parameters of rule 'priced': the weight of what is evicted is -1: give one from 0",
    ),
    "a balance below one": Broken(
        placement("{rule: sglang_cache_aware, parameters: {balanceRelThreshold: 0.5}}"),
        "the relative threshold is 0.5: give one from 1 to 1,000,000.",
    ),
    "an unknown scorer": Broken(
        placement("{rule: llmd_profile, parameters: {weights: {lora-scorer: 1}}}"),
        "in the parameters of rule 'llmd_profile': 'lora-scorer' is no scorer: choose from prefix-",
    ),
    "a negative weight of a scorer": Broken(
        placement("{rule: llmd_profile, parameters: {weights: {queue-scorer: -1}}}"),
        "the weight of 'queue-scorer' is -1: give one from 0 to 1,000,000.",
    ),
    "an unknown picker": Broken(
        placement("{rule: llmd_profile, parameters: {picker: best}}"),
        "'best' is no picker: choose from max-score-picker",
    ),
    "a negative credit": Broken(
        placement("{rule: dynamo_cost, parameters: {overlapCredit: -2}}"),
        "a weight of the cost is -2: give one from 0",
    ),
    "an empty sample": Broken(
        spec("{shadow: {sample: 0%, spec: {}}}"), "'spec.shadow': the sample is 0 %: give one above"
    ),
    "a shadow's shadow": Broken(
        spec("{shadow: {spec: {shadow: {spec: {}}}}}"),
        "'spec.shadow': a shadow has no shadow and no canary of its own: leave them out.",
    ),
    "a shadow's canary": Broken(
        spec("{shadow: {spec: {canary: {}}}}"), "a shadow has no shadow and no canary of its own"
    ),
    "twice the traffic": Broken(
        spec("{canary: {traffic: 200%}}"), "'spec.canary': the canary's traffic is 200 %: give one"
    ),
    "a canary of no requests": Broken(
        spec("{canary: {minRequests: 0}}"), "the number of requests is 0: give one from 1"
    ),
    "a canary of no time": Broken(spec("{canary: {duration: 0s}}"), "the canary's duration is 0 s"),
    "a guard of nothing": Broken(
        spec("{canary: {guards: {maxErrorRatio: 0}}}"),
        "'spec.canary.guards': the guard's ratio of errors is 0: give one above 0",
    ),
}

BROKEN = UNREADABLE | MISSHAPEN | SENSELESS
