"""Checks each process: pure functions from what was found to findings."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import Final

from deploy.doctor.finding import Examined, Finding, failed, passed, warned
from deploy.on_machine import Listener
from engine.config import ATTENTION, KERNEL_MISSING

Check = Callable[[Examined], Iterator[Finding]]

MIN_FREE_FILES = 128  # descriptors: a connection or two a peer and a client
MIN_FREE_BYTES = 64 << 20
MAX_STORE_S = 0.05  # heartbeats and placements wait for it
MAX_CLOCK_SKEW_S = 0.5  # logs and timelines of machines are read side by side
THIS_MACHINE = "this machine"
_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")


def answers(one: Examined) -> Iterator[Finding]:
    if one.is_here:
        return
    if one.facts is None:
        yield failed(
            "reachable",
            one.name,
            f"it does not answer at {one.address}: {one.problem}",
            "See whether its process lives and what its log says; if it does, open the way from"
            " this machine to that address.",
        )
    else:
        ms = one.round_trip_s * 1e3
        yield passed("reachable", one.name, f"it answers at {one.address} in {ms:.1f} ms")


def serves(one: Examined) -> Iterator[Finding]:
    if one.member is None:
        return
    if one.not_serving:
        fix = "See its log; a worker that is draining or starting serves soon or not at all."
        yield failed("serving", one.name, f"the router sends it nothing: {one.not_serving}", fix)
    else:
        yield passed("serving", one.name, "the router sends it requests")


def locked_memory(one: Examined) -> Iterator[Finding]:
    """RDMA registers the whole pool: then all of it is locked."""
    if one.facts is None or one.member is None:
        return
    limit, pool = one.facts.memlock_bytes, one.member.worker.fingerprint.layout.pool_bytes
    said = "unlimited" if limit is None else _mib(limit)
    if "nixl" in one.member.worker.transports and limit is not None and limit < pool:
        yield warned(
            "memlock",
            one.name,
            f"RLIMIT_MEMLOCK is {said}, its KV pool {_mib(pool)}: RDMA cannot register it",
            "Raise it: 'ulimit -l unlimited', LimitMEMLOCK=infinity in a unit file, or"
            " --ulimit memlock=-1 for a container.",
        )
    else:
        yield passed("memlock", one.name, f"RLIMIT_MEMLOCK is {said}")


def pool_folder(one: Examined) -> Iterator[Finding]:
    if one.facts is None or one.member is None:
        return
    folder = one.facts.run_dir
    if folder is None:
        fix = "It was removed under the worker: restart it with a run_dir that stays."
        yield failed("run_dir", one.name, "its run_dir is gone", fix)
        return
    problems = list(_folder_problems(one.name, folder.file_system, folder.free_bytes, folder.mode))
    yield from problems
    if not problems:
        said = f"{folder.path} is in memory ({folder.file_system}), {_mib(folder.free_bytes)} free"
        yield passed("run_dir", one.name, said)


def _folder_problems(name: str, kind: str, free_bytes: int, mode: int) -> Iterator[Finding]:
    if kind not in _MEMORY:
        yield warned(
            "run_dir",
            name,
            f"its KV pool lies on {kind or 'an unknown file system'}, which writes it to a disk",
            "Give it a run_dir on a tmpfs, /dev/shm for example.",
        )
    if free_bytes < MIN_FREE_BYTES:
        yield warned(
            "run_dir",
            name,
            f"{_mib(free_bytes)} are left beside its KV pool: a restarted worker may find no room",
            "Enlarge it ('mount -o remount,size=...', --shm-size for a container), or serve with"
            " fewer blocks.",
        )
    if mode & 0o077:
        fix = "Make it its owner's alone: chmod 700."
        yield warned("run_dir", name, f"others may enter its run_dir: mode {mode:04o}", fix)


def open_files(one: Examined) -> Iterator[Finding]:
    if one.facts is None or one.is_here:
        return
    limit, num = one.facts.max_open_files, one.facts.num_open_files
    if limit is not None and limit - num < MIN_FREE_FILES:
        yield warned(
            "open_files",
            one.name,
            f"{num} of {limit} file descriptors are taken: connections will soon be refused",
            "Raise it: 'ulimit -n 65536', or LimitNOFILE=65536 in a unit file.",
        )
    else:
        yield passed("open_files", one.name, f"there may be {limit or 'any number'}, few are taken")


def secrets_file(one: Examined) -> Iterator[Finding]:
    if one.facts is None:
        return
    mode = one.facts.secrets_mode
    if mode is None:
        yield warned(
            "secrets_file",
            one.name,
            "its secrets file is gone",
            "Put it back: without it the process cannot start again.",
        )
    elif mode & 0o077:
        fix = "chmod 600, then draw new secrets: what others could read is no secret any more."
        yield failed("secrets_file", one.name, f"others can read it: mode {mode:04o}", fix)
    else:
        yield passed("secrets_file", one.name, f"its owner's alone: mode {mode:04o}")


def sockets(one: Examined) -> Iterator[Finding]:
    """Finds open sockets: whoever reaches one without TLS can read what it carries, and speak to
    it."""
    if one.facts is None or one.is_here:
        return
    open_to = {socket: reach(socket) for socket in one.facts.listening}
    reached = {socket: who for socket, who in open_to.items() if who != THIS_MACHINE}
    tls = [s for s in reached if int(s.rpartition(":")[2]) in one.facts.tls_ports]
    exposed = {socket: who for socket, who in reached.items() if socket not in tls}
    for socket, who in exposed.items():
        yield warned(
            "sockets",
            one.name,
            f"it listens on {socket}, without TLS, and {who} may reach it",
            "Bind it to 127.0.0.1 ('address', or --host of 'serve') if it need not be reached"
            " from elsewhere; else close that network to all but the cluster.",
        )
    if tls:
        said = (
            f"it listens on {', '.join(tls)} under TLS: for this cluster's processes, or for whom a"
            " front door lets in"
        )
        yield passed("sockets", one.name, said)
    elif not exposed:
        where = ", ".join(open_to) or "nowhere"
        yield passed("sockets", one.name, f"it listens on {where}: this machine alone")


def reach(socket: str) -> str:
    """Tells who may reach a listening socket, as far as its address says it."""
    address = ip_address(socket.rpartition(":")[0].strip("[]"))
    if address.is_unspecified:
        return "everyone on each of its networks"
    if address.is_loopback:
        return THIS_MACHINE
    return "its private network" if address.is_private else "the internet"


def store(one: Examined) -> Iterator[Finding]:
    if one.facts is None or one.facts.store is None:
        return
    answer = one.facts.store
    said = f"the Redis at {answer.address}"
    if answer.problem:
        fix = "Start it, or open the way to it; until then workers cannot join or leave."
        yield failed("store", one.name, f"{said} does not answer: {answer.problem}", fix)
    elif answer.seconds > MAX_STORE_S:
        fix = "Bring it nearer, or look for what keeps it busy (SLOWLOG GET)."
        yield warned("store", one.name, f"{said} took {answer.seconds * 1e3:.0f} ms", fix)
    else:
        yield passed("store", one.name, f"{said} answers in {answer.seconds * 1e3:.1f} ms")


def clock(one: Examined) -> Iterator[Finding]:
    """Counts only what the round trip cannot explain."""
    if one.facts is None or one.is_here:
        return
    sure_s = abs(one.clock_ahead_s) - one.round_trip_s / 2
    way = "ahead of" if one.clock_ahead_s > 0 else "behind"
    if sure_s > MAX_CLOCK_SKEW_S:
        yield warned(
            "clock",
            one.name,
            f"its clock is {abs(one.clock_ahead_s):.1f} s {way} ours",
            "Let chrony or systemd-timesyncd keep both: logs and timelines are compared by them.",
        )
    else:
        yield passed("clock", one.name, "its clock is ours")


def digests(one: Examined) -> Iterator[Finding]:
    if one.facts is None or one.member is None:
        return
    if one.facts.checks_content:
        yield passed("digests", one.name, "what it receives is checked by content")
    else:
        yield warned(
            "digests",
            one.name,
            "it counts the bytes that it receives and does not check them",
            "Set 'digest: content', the default: corrupted KV gives wrong answers silently.",
        )


def checkpoint(one: Examined) -> Iterator[Finding]:
    """Names what of the model's files changes nothing: a router reads them all."""
    if one.facts is None or one.facts.review is None:
        return
    review = one.facts.review
    for note in review.unknown:
        yield warned(
            "checkpoint",
            one.name,
            f"{', '.join(note.keys)} in the model's {note.file}: nobody here knows it, it is"
            " ignored",
            "Nothing, where it is a note; else ask for it: the answers may not be the model's.",
        )
    for note in review.ignored:
        said = f"{', '.join(note.keys)} in the model's {note.file}: ignored ({note.why})"
        yield passed("checkpoint", one.name, said)
    if not (review.unknown or review.ignored):
        yield passed("checkpoint", one.name, "all that the model's files say is followed")


def attention(one: Examined) -> Iterator[Finding]:
    """Without its kernel a worker on a CPU serves, several times slower."""
    if one.facts is None or (choice := one.facts.choices.get(ATTENTION)) is None:
        return
    if choice.startswith(KERNEL_MISSING):
        yield warned(
            "attention",
            one.name,
            f"its attention is by {choice}",
            "On a CPU: install a C++ compiler (g++ or clang++) there; on CUDA: Triton ('pip install"
            " penstock[gpu]') and a C compiler. Then start the worker again.",
        )
    else:
        yield passed("attention", one.name, f"its attention is {choice}")


def measured(one: Examined) -> Iterator[Finding]:
    """Names what its speed depends on, and nothing is wrong with."""
    if one.facts is None or one.member is None:
        return
    subjects: dict[str, list[str]] = defaultdict(list)
    for subject, choice in one.facts.choices.items():
        if subject != ATTENTION:
            subjects[choice].append(subject)
    if not subjects:
        return
    said = "; ".join(f"{', '.join(names)}: {choice}" for choice, names in subjects.items())
    yield passed("measured", one.name, f"fastest on its machine: {said}")


CHECKS: Sequence[Check] = (
    answers,
    serves,
    sockets,
    secrets_file,
    pool_folder,
    locked_memory,
    open_files,
    store,
    clock,
    digests,
    checkpoint,
    attention,
    measured,
)


def check_process(one: Examined) -> Iterator[Finding]:
    for check in CHECKS:
        yield from check(one)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


_FIX: Final = "Close that network to all but the cluster's machines and its operators"


def ray_sockets(
    machine: str, listeners: Sequence[Listener], *, has_token: bool
) -> Iterator[Finding]:
    """Every listening socket of Ray's on one machine, by who may reach it."""
    subject = f"Ray on {machine}"
    by_reach: dict[str, list[str]] = {}
    for listener in listeners:
        for socket in listener.sockets:
            said = f"{socket} ({listener.name}, pid {listener.pid})"
            by_reach.setdefault(reach(socket), []).append(said)
    for who, sockets in by_reach.items():
        where = ", ".join(sockets)
        if who == THIS_MACHINE:
            yield passed("sockets", subject, f"it listens on {where}: {who} alone")
            continue
        risk = "its token, sent in clear text," if has_token else "nothing is asked for, and that"
        yield warned(
            "sockets",
            subject,
            f"it listens on {where}, and {who} may reach it: {risk} admits to running any code",
            f"{_FIX}." if has_token else f"{_FIX}, and set RAY_AUTH_MODE=token everywhere.",
        )


def unseen(machine: str, why: str) -> Finding:
    return warned(
        "sockets",
        f"Ray on {machine}",
        f"where it listens is not known: {why}",
        "Type this where 'penstock up' was typed, with the same RAY_AUTH_MODE and token.",
    )
