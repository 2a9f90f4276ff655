"""A hundred clusters that must never start, each with the sentence that says why."""

from tests.documents import Broken

ENVELOPE = "apiVersion: penstock/v1\nkind: Cluster\nmetadata: {name: broken}\n"
DECODE = "{name: d, role: decode}"


def spec(text: str) -> str:
    return f"{ENVELOPE}spec: {text}\n"


def pools(text: str) -> str:
    return spec(f"{{pools: [{text}]}}")


def pool(text: str) -> str:
    """A decode pool with more to say."""
    return pools(f"{{name: d, role: decode, {text}}}")


def routers(text: str, more: str = "") -> str:
    return spec(f"{{routers: {{{text}}}{more}}}")


# No YAML, or none that is taken.
UNREADABLE = {
    "empty": Broken("", "this is no cluster: begin with 'apiVersion: penstock/v1' and 'kind: Clu"),
    "a list": Broken("- kind: Cluster\n", "this is no cluster"),
    "a text": Broken("penstock", "this is no cluster"),
    "an open bracket": Broken(ENVELOPE + "spec: {", "is not valid YAML: while parsing a flow"),
    "a tab": Broken(ENVELOPE + "spec:\n\tpools: []\n", "found character '\\t' that cannot start"),
    "a key twice": Broken(ENVELOPE + "kind: Cluster\n", "'kind' is given twice (line 4,"),
    "a setting twice": Broken(spec("{drain: 1s, drain: 2s}"), "'drain' is given twice (line 4"),
    "an alias": Broken(
        pools("&a {name: a, role: decode}, *a"), "'*a' is an alias: write out what it means"
    ),
    "a tag": Broken(spec("!!python/object/apply:os.system ['true']"), "could not determine a"),
    "two documents": Broken(spec("{}") + "---\n" + spec("{}"), "expected a single document"),
    "no UTF-8": Broken(ENVELOPE.encode() + b"spec: {x: \xff}\n", "is not valid YAML"),
    "too large": Broken(ENVELOPE + "#" * (64 << 10), "bytes, more than 65536: give a config"),
    "too deep": Broken(spec("[" * 400), "is not valid YAML"),
    "a huge number": Broken(pool("numThreads: " + "9" * 5000), "is not valid YAML"),
    "a date": Broken(pools("{name: 2026-01-01, role: decode}"), "put quotes around"),
}

# A schema sees these, too.
MISSHAPEN = {
    "no apiVersion": Broken("kind: Cluster\nspec: {}\n", "this is no cluster"),
    "no kind": Broken("apiVersion: penstock/v1\nspec: {}\n", "this is no cluster"),
    "another version": Broken(
        spec("{}").replace("v1", "v2"), "'apiVersion' is \"penstock/v2\": give 'penstock/v1'."
    ),
    "a policy": Broken(
        spec("{}").replace("Cluster", "RoutingPolicy"),
        "'kind' is \"RoutingPolicy\": give 'Cluster'.",
    ),
    "no metadata": Broken(
        "apiVersion: penstock/v1\nkind: Cluster\nspec: {}\n", "'metadata' is missing: it has no"
    ),
    "no name": Broken(spec("{}").replace("{name: broken}", "{}"), "'metadata.name' is missing"),
    "a number as name": Broken(
        spec("{}").replace("broken", "1"), "'metadata.name' is 1: give a valid string, in quotes."
    ),
    "a capital in the name": Broken(
        spec("{}").replace("broken", "Broken"), "'Broken' is no name of a cluster: give lower-case"
    ),
    "a long name": Broken(spec("{}").replace("broken", "b" * 64), "'metadata': 'bbbb"),
    "a name that leads elsewhere": Broken(
        spec("{}").replace("broken", "'../etc'"), "'../etc' is no name of a cluster"
    ),
    "no spec": Broken(ENVELOPE, "'spec' is missing: it has no default."),
    "an empty spec": Broken(ENVELOPE + "spec:\n", "'spec' is null: give keys with values."),
    "a list as spec": Broken(spec("[]"), "'spec' is []: give keys with values."),
    "a misspelt section": Broken(
        spec("{pool: []}"), "'pool' in 'spec' is an unknown key: did you mean 'pools'?"
    ),
    "snake case": Broken(
        spec("{hash_grain: 16}"), "'hash_grain' in 'spec' is an unknown key: did you mean 'hashGr"
    ),
    "a section of a policy": Broken(spec("{classes: []}"), "'classes' in 'spec' is an unknown key"),
    "replicas": Broken(pool("replicas: 2"), "'replicas' in 'spec.pools[0]' is an unknown key"),
    "pools by name": Broken(
        spec("{pools: {prefill: {role: prefill}}}"), '\'spec.pools\' is {"prefill": {"role"'
    ),
    "a text as pool": Broken(pools("decode"), "'spec.pools[0]' is \"decode\": give keys with v"),
    "a pool without name": Broken(pools("{role: decode}"), "'spec.pools[0].name' is missing"),
    "a pool without role": Broken(pools("{name: d}"), "'spec.pools[0].role' is missing"),
    "a pool called no": Broken(
        pools("{name: no, role: decode}"), "'spec.pools[0].name' is false: give a valid string"
    ),
    "a role that does not exist": Broken(
        pools(f"{DECODE}, {{name: r, role: router}}"),
        "'spec.pools[1].role' is \"router\": give 'prefill' or 'decode'.",
    ),
    "a role in capitals": Broken(
        pools("{name: d, role: DECODE}"), "'spec.pools[0].role' is \"DECODE\": give 'prefill' or"
    ),
    "half a worker": Broken(
        pool("minWorkers: 1.5"), "'spec.pools[0].minWorkers' is 1.5: give a valid integer"
    ),
    "workers as text": Broken(
        pool("minWorkers: two"), "'spec.pools[0].minWorkers' is \"two\": give a valid integer."
    ),
    "a truth as threads": Broken(
        pool("numThreads: true"), "'spec.pools[0].numThreads' is true: give a valid integer."
    ),
    "a pool of bytes without unit": Broken(
        pool("kvPool: 8589934592"), "'spec.pools[0].kvPool' is 8589934592: give a size, as 8GiB."
    ),
    "a pool in Kubernetes' units": Broken(
        pool("kvPool: 8Gi"), "'spec.pools[0].kvPool' is '8Gi': give a size, as 8GiB."
    ),
    "a pool in words": Broken(
        pool("kvPool: all of it"), "'spec.pools[0].kvPool' is 'all of it': give a size, as 8GiB."
    ),
    "a chunk without unit": Broken(
        pool("chunk: 0.25"), "'spec.pools[0].chunk' is 0.25: give a duration, as 750ms or 2s."
    ),
    "a number type that is none": Broken(
        pool("kvDtype: float8"), "'spec.pools[0].kvDtype' is \"float8\": give 'float32', 'bflo"
    ),
    "resources as text": Broken(
        pool("resources: 2"), "'spec.pools[0].resources' is 2: give keys with values."
    ),
    "memory": Broken(
        pool("resources: {memory: 8GiB}"), "'memory' in 'spec.pools[0].resources' is an unknown"
    ),
    "a misspelt resource": Broken(
        pool("resources: {cpu: 2}"),
        "'cpu' in 'spec.pools[0].resources' is an unknown key: did you mean 'cpus'?",
    ),
    "a resource with unit": Broken(
        pool("resources: {cpus: 500m}"), "'spec.pools[0].resources.cpus' is \"500m\": give a valid"
    ),
    "labels as list": Broken(pool("labels: [a]"), "'spec.pools[0].labels' is [\"a\"]: give keys"),
    "an unknown label": Broken(
        pool("labels: {region: eu}"), "'region' in 'spec.pools[0].labels' is an unknown key"
    ),
    "a number as label": Broken(
        pool("labels: {rack: 7}"), "'spec.pools[0].labels.rack' is 7: give a valid string, in quot"
    ),
    "transports as text": Broken(
        spec("{transports: tcp}"), "'spec.transports' is \"tcp\": give a valid array."
    ),
    "a number as transport": Broken(
        spec("{transports: [1]}"), "'spec.transports[0]' is 1: give a valid string, in quotes."
    ),
    "a store switched by a word": Broken(
        spec("{store: no}"), "'spec.store' is false: give a valid string, in quotes."
    ),
    "routers as number": Broken(spec("{routers: 2}"), "'spec.routers' is 2: give keys with values"),
    "one port": Broken(routers("ports: 50051"), "'spec.routers.ports' is 50051: give a valid ar"),
    "a port as key": Broken(
        routers("port: 50051"),
        "'port' in 'spec.routers' is an unknown key: did you mean 'ports'?",
    ),
    "a port as text": Broken(
        routers("ports: ['50051']"), "'spec.routers.ports[0]' is \"50051\": give a valid integer"
    ),
    "a truth in quotes": Broken(
        spec("{insecure: 'true'}"), "'spec.insecure' is \"true\": give a valid boolean."
    ),
    "secrets in the file": Broken(
        spec("{secrets: {cluster_token: x}}"), "'secrets' in 'spec' is an unknown key: did you me"
    ),
    "a limit of the router's own file": Broken(
        spec("{limits: {max_n: 4}}"),
        "'max_n' in 'spec.limits' is an unknown key: did you mean 'maxN'?",
    ),
    "a deadline without unit": Broken(
        spec("{limits: {defaultDeadline: 300}}"),
        "'spec.limits.defaultDeadline' is 300: give a duration, as 750ms or 2s.",
    ),
    "a message without unit": Broken(
        spec("{limits: {maxMessage: 8}}"), "'spec.limits.maxMessage' is 8: give a size, as 8GiB."
    ),
    "a drain without unit": Broken(spec("{drain: 30}"), "'spec.drain' is 30: give a duration"),
    "a list of policies": Broken(
        spec("{policyFile: [a.yaml]}"), "'spec.policyFile' is [\"a.yaml\"]: give"
    ),
}

# Only the parser sees these: bounds, and what does not fit together.
SENSELESS = {
    "no pools": Broken(pools(""), "'spec.pools' has no decode worker at the start, and nobody"),
    "no decode pool": Broken(
        pools("{name: p, role: prefill}"), "give a pool with 'role: decode' and 'minWorkers' of 1"
    ),
    "a decode pool that starts empty": Broken(
        pool("minWorkers: 0"), "'spec.pools' has no decode worker at the start"
    ),
    "two pools of one name": Broken(
        pools(f"{DECODE}, {{name: d, role: prefill}}"),
        "'spec.pools[1].name' is 'd', which another pool is called: give each a name of its own.",
    ),
    "a pool called as routers are": Broken(
        pools("{name: router, role: decode}"), "'spec.pools[0].name' is 'router', which routers a"
    ),
    "a blank in a pool's name": Broken(
        pools("{name: very fast, role: decode}"), "'very fast' is no name of a pool: give lower-c"
    ),
    "an empty name of a pool": Broken(
        pools("{name: '', role: decode}"), "'spec.pools[0]': '' is no name of a pool"
    ),
    "too many pools": Broken(
        pools(", ".join(f"{{name: d{i}, role: decode}}" for i in range(65))),
        "'spec.pools' has 65 pools: give at most 64.",
    ),
    "too many workers": Broken(
        pools(
            "{name: a, role: decode, minWorkers: 1000}, {name: b, role: prefill, minWorkers: 99}"
        ),
        "'spec.pools' may have 1099 workers: give at most 1024.",
    ),
    "too many workers in one pool": Broken(
        pool("maxWorkers: 5000"), "'spec.pools[0]': 'maxWorkers' is 5000: it must be at most 1024."
    ),
    "fewer at most than at least": Broken(
        pool("minWorkers: 3, maxWorkers: 2"),
        "'spec.pools[0]': 'maxWorkers' is 2, less than the 3 of 'minWorkers': give at least as",
    ),
    "a negative number of workers": Broken(
        pool("minWorkers: -1"), "'spec.pools[0]': 'minWorkers' is -1: it must be at least 0."
    ),
    "no threads": Broken(
        pool("numThreads: 0"), "'spec.pools[0]': 'numThreads' is 0: it must be at least 1."
    ),
    "a thread for each pixel": Broken(
        pool("numThreads: 4096"), "'numThreads' is 4096: it must be at most 1024."
    ),
    "a model over several GPUs": Broken(
        pool("tensorParallel: 2"),
        "'tensorParallel' is 2: the engine does not split a model over several GPUs yet: give 1.",
    ),
    "a model over no GPU": Broken(pool("tensorParallel: 0"), "'tensorParallel' is 0: it must be"),
    "a pool sized twice": Broken(
        pool("kvPool: 1GiB, numBlocks: 64"),
        "'spec.pools[0]': 'numBlocks' and 'kvPool' are both given: one of them says how large",
    ),
    "a pool of nothing": Broken(pool("kvPool: 0B"), "'kvPool' is 0: it must be at least 1."),
    "no blocks": Broken(pool("numBlocks: 0"), "'numBlocks' is 0: it must be at least 1."),
    "a block that no grain fits": Broken(
        pool("blockSize: 24"), "'spec.pools[0].blockSize' is 24: give what divides 16, or a multi"
    ),
    "a grain that no block fits": Broken(
        spec("{hashGrain: 24}"), "'spec.hashGrain' is 24, and blocks of 'prefill' have 16 tok"
    ),
    "no grain": Broken(spec("{hashGrain: 0}"), "'spec': 'hashGrain' is 0: it must be at least 1."),
    "an unknown device": Broken(
        pool("device: tpu"), "'device' is 'tpu': give cpu, cuda, or one of several as cuda:0."
    ),
    "no sequences": Broken(pool("maxSequences: 0"), "'maxSequences' is 0: it must be at least 1."),
    "a chunk of no time": Broken(pool("chunk: 0s"), "'chunk' is 0.0: it must be above 0."),
    "negative GPUs": Broken(
        pool("resources: {gpus: -1}"), "'spec.pools[0].resources': 'gpus' is -1.0: it must be at"
    ),
    "no processor": Broken(pool("resources: {cpus: 0}"), "'cpus' is 0.0: it must be above 0."),
    "a label with a blank": Broken(
        pool("labels: {host: a b}"), "'spec.pools[0].labels': 'host' is 'a b': give letters, digits"
    ),
    "an empty label": Broken(pool("labels: {zone: ''}"), "'zone' is '': give letters, digits"),
    "no transport": Broken(
        spec("{transports: []}"), "'spec.transports' is empty: choose from shared_memory, nixl, nc"
    ),
    "an unknown transport": Broken(
        spec("{transports: [tcp, pigeon]}"),
        "'spec.transports[1]' is 'pigeon', which is no transport: choose from shared_memory,",
    ),
    "a transport that is required and not wanted": Broken(
        spec("{requireTransport: nixl}"),
        "'spec.requireTransport' is 'nixl', which 'spec.transports' does not name: add it there",
    ),
    "a password of Redis": Broken(
        spec("{store: 'redis://:hunter2@10.0.0.1:6379/0'}"),
        "'spec.store' holds a password, and a cluster's file may be read by many: take it out",
    ),
    "another store": Broken(
        spec("{store: etcd}"), "'spec.store' is no store: give 'memory', or redis://HOST:PORT/DB."
    ),
    "another scheme": Broken(spec("{store: 'http://a:1/0'}"), "'spec.store' is no store"),
    "a Redis at no host": Broken(spec("{store: 'redis://'}"), "'spec.store' is no store"),
    "a Redis at no port": Broken(
        spec("{store: 'redis://a:99999/0'}"), "'spec.store' is no store: give 'memory', or redis"
    ),
    "routers that share nothing": Broken(
        routers("count: 2"), "'spec.routers.count' is 2 while each would have a list of workers of"
    ),
    "no router": Broken(routers("count: 0"), "'spec.routers': 'count' is 0: it must be at least 1"),
    "a port twice": Broken(
        routers("count: 2, ports: [7000, 7000]", ", store: 'redis://a:1/0'"),
        "'spec.routers.ports' has 7000 twice: two routers cannot listen there.",
    ),
    "more ports than routers": Broken(
        routers("ports: [1, 2]"), "'spec.routers.ports' has 2 ports for 1 routers: give 1."
    ),
    "fewer ports than routers": Broken(
        routers("count: 3, ports: [1, 2]", ", store: 'redis://a:1/0'"),
        "'spec.routers.ports' has 2 ports for 3 routers: give 1 for all, or 3.",
    ),
    "more internal ports than routers": Broken(
        routers("internalPorts: [1, 2]"),
        "'spec.routers.internalPorts' has 2 ports for 1 routers: give 1.",
    ),
    "an internal port twice": Broken(
        routers("count: 2, internalPorts: [7, 7]", ", store: 'redis://a:1/0'"),
        "'spec.routers.internalPorts' has 7 twice: two routers cannot listen there.",
    ),
    "an internal port that is none": Broken(
        routers("internalPorts: [-1]"),
        "'spec.routers': 'internalPorts' has -1: give numbers from 0 to 65535",
    ),
    "more HTTP ports than routers": Broken(
        routers("httpPorts: [1, 2]"), "'spec.routers.httpPorts' has 2 ports for 1 routers: give 1."
    ),
    "an HTTP port that gRPC has": Broken(
        routers("httpPorts: [50051]"),
        "'spec.routers.httpPorts' has 50051, where clients come in: give another.",
    ),
    "an HTTP port that calls of the cluster have": Broken(
        routers("httpPorts: [50052]"),
        "'spec.routers.internalPorts' has 50052, where clients come in: give another.",
    ),
    "one port for clients and calls of the cluster": Broken(
        routers("ports: [50052]"),
        "'spec.routers.internalPorts' has 50052, where clients come in: give another.",
    ),
    "a port that is none": Broken(
        routers("ports: [70000]"), "'spec.routers': 'ports' has 70000: give numbers from 0 to 65535"
    ),
    "a port beside the host": Broken(
        routers("bind: '127.0.0.1:50051'"), "'spec.routers.bind' is '127.0.0.1:50051': give a host"
    ),
    "a port where each process has its own": Broken(
        spec("{metricsBind: '0.0.0.0:9000'}"), "'spec.metricsBind' is '0.0.0.0:9000': give a host"
    ),
    "a URL as host": Broken(
        routers("advertise: 'http://chat'"), "'spec.routers.advertise' is 'http://chat': give a ho"
    ),
    "all addresses without the word": Broken(
        routers("bind: 0.0.0.0"),
        "'spec.routers.bind' is '0.0.0.0', where others than this machine may come in, and nobody",
    ),
    "a name without the word": Broken(
        routers("bind: chat.internal"), "give a loopback address, or say 'insecure: true'"
    ),
    "an address that nobody can dial": Broken(
        routers("bind: 0.0.0.0, advertise: '::'", ", insecure: true"),
        "'spec.routers.advertise' is '::', which nobody can dial: give the address that leads",
    ),
    "no answers": Broken(
        spec("{limits: {maxN: 0}}"), "'spec.limits': 'maxN' is 0: it must be at least 1."
    ),
    "no time to answer": Broken(
        spec("{limits: {maxDeadline: 0s}}"), "'spec.limits': 'maxDeadline' is 0.0: it must be abo"
    ),
    "a drain of weeks": Broken(
        spec("{drain: 999h}"), "'spec': 'drain' is 3596400.0: it must be at most 86400."
    ),
}

BROKEN = UNREADABLE | MISSHAPEN | SENSELESS
