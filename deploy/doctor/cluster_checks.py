"""Checks what is to be seen in all processes together: pure functions to findings."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from cluster.facts import ProcessFacts
from cluster.wire_version import are_neighbors
from deploy.doctor.finding import Examined, Finding, failed, passed, warned
from deploy.exposure import Reached, front_door_text, readable

Value = Callable[[ProcessFacts], str]
_FEW_DAYS = 14.0
_COMPARED = ("penstock", "grpcio", "protobuf", "torch", "nixl")


def check_cluster(all_of_them: Sequence[Examined], expected: Sequence[str]) -> Iterator[Finding]:
    """`expected`: workers that were started, whether or not the router knows them."""
    yield from missing(all_of_them, expected)
    yield from wire_versions(all_of_them)
    yield from versions(all_of_them)
    yield from cpus(all_of_them)


def missing(all_of_them: Sequence[Examined], expected: Sequence[str]) -> Iterator[Finding]:
    known = {one.name for one in all_of_them}
    for name in expected:
        if name not in known:
            fix = "See its log: it may have died, or may not reach the router."
            yield failed("serving", name, "it was started, and the router does not know it", fix)
    if not any(one.member for one in all_of_them):
        fix = "Start some, with the router's address as their 'router'."
        yield failed("serving", "cluster", "no worker has registered", fix)


def front_door(
    listens: str, *, is_insecure: bool, is_plain: bool = False, has_tls: bool = False
) -> Iterator[Finding]:
    if is_insecure:
        yield warned(
            "front_door",
            "router",
            f"INSECURE: others than its machine may reach {listens}, and nobody asks who they are",
            "Give callers API keys ('penstock keys add', serve --keys), or serve on a loopback"
            " address; else close that network to all whom you would not let in.",
        )
    elif is_plain:
        yield warned(
            "front_door",
            "router",
            f"INSECURE: {front_door_text(listens, asks_keys=True)}",
            "Give it a certificate ('tls', serve --tls-cert), or put a proxy with TLS in front of"
            " it and let it listen on a loopback address; else close that network to all whom you"
            " would not trust with a key.",
        )
    elif has_tls:
        yield passed("front_door", "router", f"what is said to {listens} is under TLS")
    elif listens:
        yield passed("front_door", "router", f"{listens} is for its machine alone")


def certificate(
    names: Sequence[str], *, left_s: float, asks_clients: bool, error: str
) -> Iterator[Finding]:
    """Judges what the front doors show. `names`: of hosts that it is for; `error`: why it is not
    what its files say."""
    left_days = left_s / 86_400
    ends = f"the certificate for {', '.join(names) or 'nobody'}"
    renew = "Have it renewed, and its files replaced: routers follow them."
    if error:
        yield failed(
            "certificate",
            "router",
            f"what the front doors show is not what the files say: {error}",
            "Mend the files; until then the certificate from before is shown.",
        )
    if left_days <= 0:
        yield failed("certificate", "router", f"{ends} ended {-left_days:.1f} days ago", renew)
    elif left_days < _FEW_DAYS:
        yield warned("certificate", "router", f"{ends} ends in {left_days:.1f} days", renew)
    else:
        yield passed("certificate", "router", f"{ends} holds for {left_days:.0f} days")
    if asks_clients:
        yield passed(
            "certificate", "router", "only clients with a certificate of their own come in"
        )


def callers(error: str, *, num_keys: int | None, num_unchecked: int) -> Iterator[Finding]:
    """`error`: why the keys in force are not as their file says; `num_keys`: None: nobody is asked
    for one."""
    if error:
        yield failed(
            "callers",
            "router",
            f"the API keys in force are not as their file says: {error}",
            "Mend the file; who was added since is not known, and who was revoked comes in.",
        )
    elif num_keys is not None:
        yield passed("callers", "router", f"{num_keys} API keys are in force")
    if num_unchecked:
        yield warned(
            "callers",
            "router",
            f"{num_unchecked} times since its start a quota was not checked",
            "See that the store answers: while it is away all callers are let in.",
        )


def ways(internal: str, all_of_them: Sequence[Examined], *, can_encrypt: bool) -> Iterator[Finding]:
    """`internal`: where the router hears calls from other machines."""
    workers = [
        Reached(name=one.name, address=one.address, transports=[*one.member.worker.transports])
        for one in all_of_them
        if one.member is not None
    ]
    problems = list(readable(internal, workers, can_encrypt=can_encrypt))
    for sentence in problems:
        yield warned(
            "encryption",
            "cluster",
            f"INSECURE: {sentence}",
            "Draw secrets that hold an authority ('penstock secrets'), for all processes, and let"
            " KV travel by tcp; else close that network to all but the cluster.",
        )
    if not problems:
        said = "what passes between machines is under TLS" if can_encrypt else "nothing leaves here"
        yield passed("encryption", "cluster", said)


def wire_versions(all_of_them: Sequence[Examined]) -> Iterator[Finding]:
    found = _by_value(all_of_them, lambda facts: str(facts.wire_version))
    if len(found) > 1:
        numbers = sorted(map(int, found))
        judged = warned if are_neighbors(numbers[0], numbers[-1]) else failed
        fix = (
            "Run the same release everywhere, unless you are just upgrading: workers of two wire"
            " versions exchange no KV, and a router speaks to its own and to the one before."
        )
        yield judged("versions", "cluster", f"wire versions differ: {_told(found)}", fix)


def versions(all_of_them: Sequence[Examined]) -> Iterator[Finding]:
    """A library may be absent where it is not needed: only what is there is compared."""
    is_equal = True
    for name in _COMPARED:
        found = _by_value(all_of_them, partial(_version, name))
        found.pop("", None)
        if len(found) > 1:
            is_equal = False
            fix = f"Install one version of {name} everywhere, unless you are just upgrading."
            yield warned("versions", "cluster", f"{name} differs: {_told(found)}", fix)
    if is_equal:
        yield passed("versions", "cluster", "the same versions everywhere")


def cpus(all_of_them: Sequence[Examined]) -> Iterator[Finding]:
    """Threads that compute, against cores."""
    by_machine: dict[str, list[Examined]] = defaultdict(list)
    for one in all_of_them:
        if one.facts is not None and one.member is not None:
            by_machine[one.facts.machine].append(one)
    for here in by_machine.values():
        facts = [one.facts for one in here if one.facts is not None]
        num_threads = sum(each.num_threads for each in facts)
        num_cpus = max((each.num_cpus for each in facts), default=0)
        where = ", ".join(one.name for one in here)
        if num_threads > num_cpus:
            yield warned(
                "cpus",
                where,
                f"their engines compute with {num_threads} threads on {num_cpus} CPUs",
                "Serve with fewer workers or --threads: threads that wait for each other's CPU"
                " make every step slower.",
            )
        else:
            yield passed("cpus", where, f"{num_threads} threads on {num_cpus} CPUs")


def _version(name: str, facts: ProcessFacts) -> str:
    return facts.versions.get(name, "")


def _by_value(all_of_them: Sequence[Examined], value: Value) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for one in all_of_them:
        if one.facts is not None:
            found[value(one.facts)].append(one.name)
    return found


def _told(found: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} at {', '.join(names)}" for value, names in sorted(found.items()))
