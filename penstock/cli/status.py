"""`penstock status`: the pool as the router sees it."""

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import typer

from cluster.addresses import Endpoint
from cluster.codec import load_report_from_pb
from cluster.errors import ConfigError
from cluster.secrets import load_secrets
from cluster.worker_codec import member_from_pb
from deploy.exposure import Reached, front_door_text, readable
from penstock.cli import options
from penstock.cli.cluster_calls import ask_cluster
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_cluster, started_workers
from penstock.cli.messages import plain
from penstock.cli.output import say, write, write_json, write_table
from penstock.v1 import worker_pb2 as pb
from simulator.fitted import Reported, fitted
from simulator.setting import Setting
from simulator.speeds import KEY, speeds_of

WORKER_COLUMNS = [
    "worker",
    "role",
    "state",
    "running",
    "waiting",
    "blocks free",
    "cached",
    "foretold, found",
    "index age",
    "address",
]
PAIR_COLUMNS = ["from", "to", "transport", "moved", "bytes", "GB/s"]
PAIR_COLUMNS += ["given up", "failed", "quarantined"]
CLASS_COLUMNS = ["class", "TTFT", "ITL", "placed", "rejected", "in time", "steady", "tokens"]
UNHEARD = "the router does not hear from it"
LOST = {UNHEARD, "unreachable", "not ready yet: it has just started", "no report yet"}
DRAINING = "draining"  # the router's reason
_MOST_SCRAPED = 8  # workers whose addresses are told one by one
GIVEN_UP = "cancelled"  # what nobody needed any more: no failure


def status(
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Show every worker, whether it serves, and what moved between them.

    Exits 8 when one does not serve.

    Example: penstock status --json | jq '.workers[] | select(.serving | not)'
    """
    where, secrets = find_cluster(address, secrets_file)
    reply = fetch_status(where, secrets)
    exposed = list(_exposed(reply, secrets))
    restarting = _add_missing(reply, secrets)
    if json:
        write_json(_as_json(where, reply, restarting, exposed))
    else:
        _show(where, reply, restarting)
        write("".join(f"INSECURE: {sentence}\n" for sentence in exposed))
    if not reply.workers or not all(worker.serving for worker in reply.workers):
        raise typer.Exit(ExitCode.UNHEALTHY)


def reported(reply: pb.StatusResponse) -> list[Reported]:
    """Gives what each worker said last."""
    return [
        (member_from_pb(each.member), load_report_from_pb(each.load))
        for each in reply.workers
        if each.member.worker.incarnation  # the router hears of it
    ]


def _speeds(reply: pb.StatusResponse) -> dict[str, Any] | None:
    """Gives what `penstock plan` takes; None while a worker does not know its costs."""
    try:
        return speeds_of(fitted(Setting(num_prefill=0, num_decode=1), reported(reply)))
    except ConfigError:
        return None


def status_json(address: str, secrets_file: Path) -> dict[str, Any]:
    """Gives what `--json` prints."""
    reply = fetch_status(address, secrets_file)
    exposed = list(_exposed(reply, secrets_file))
    return _as_json(address, reply, _add_missing(reply, secrets_file), exposed)


def _as_json(
    address: str, reply: pb.StatusResponse, restarting: set[str], exposed: list[str]
) -> dict[str, Any]:
    told = {"restarting": sorted(restarting), "exposed": exposed, KEY: _speeds(reply)}
    return {"address": address, **plain(reply), **told}


def _add_missing(reply: pb.StatusResponse, secrets_file: Path) -> set[str]:
    """A worker that was started here, but that the router has given up, is no less broken. Returns
    who is being started again: `penstock serve` does that to whom it has lost."""
    known = {worker.member.worker.worker_id for worker in reply.workers}
    away = {each.worker_id: each for each in reply.away}
    ours = started_workers(secrets_file)
    for name in dict.fromkeys([*ours, *away]):
        if name not in known:
            worker = reply.workers.add(reason=UNHEARD)
            worker.member.worker.worker_id = name
    lost = {each.member.worker.worker_id for each in reply.workers if each.reason in LOST}
    for worker in reply.workers:
        missed = away.get(worker.member.worker.worker_id)
        if missed is not None and not worker.serving:
            worker.member.role = missed.role
            worker.reason += f", {_absence(missed)}"
    crash_loops = {name for name, missed in away.items() if missed.crash_looping}
    return lost.intersection(ours) - crash_loops


def _absence(missed: pb.AwayWorker) -> str:
    """Says whether requests wait for it."""
    if missed.crash_looping:
        return f"crash-loops: {missed.deaths} deaths within a minute, nobody waits for it"
    expectation = "expected back" if missed.expected else "no longer expected back"
    return f"away for {missed.away_seconds:.1f} s, {expectation}"


def fetch_status(address: str, secrets_file: Path) -> pb.StatusResponse:
    reply: pb.StatusResponse = ask_cluster("Status", pb.StatusRequest(), address, secrets_file)
    return reply


def _exposed(reply: pb.StatusResponse, secrets_file: Path) -> Iterator[str]:
    """Says what others can read, or where they can come in."""
    if reply.insecure or reply.plain:
        has_tls = reply.HasField("certificate")
        yield front_door_text(reply.listens, asks_keys=not reply.insecure, has_tls=has_tls)
    workers = [each.member.worker for each in reply.workers]
    yield from readable(
        reply.internal,
        [Reached(name=w.worker_id, address=w.address, transports=[*w.transports]) for w in workers],
        can_encrypt=load_secrets(secrets_file).authority is not None,
    )


def _role(worker: pb.WorkerStatus) -> str:
    if worker.member.role == pb.ROLE_UNSPECIFIED:
        return worker.member.worker.worker_id.rpartition("-")[0]
    return pb.Role.Name(worker.member.role).removeprefix("ROLE_").lower()


def _state(worker: pb.WorkerStatus, restarting: Container[str]) -> str:
    if worker.serving:
        return "serving"
    if worker.load.HasField("drain") and worker.reason == DRAINING:
        return drain_text(worker.load)
    is_back_soon = worker.member.worker.worker_id in restarting
    state = "RESTARTING" if is_back_soon else "NOT SERVING"
    return f"{state}: {worker.reason or 'no reason was given'}"


def drain_text(load: pb.LoadReport) -> str:
    """Says how far a drain is, and what comes then."""
    drain = load.drain
    if load.open_calls:
        how = f"DRAINING: {load.open_calls} in flight, {drain.left_seconds:.0f} s left,"
    else:
        how = "DRAINED:"
    then = "then it ends, " if drain.ends else ""
    if drain.then:
        then = f"then {pb.Role.Name(drain.then).removeprefix('ROLE_').lower()}, "
    return f"{how} {then}since {drain.seconds:.0f} s"


def _show(address: str, reply: pb.StatusResponse, restarting: Container[str]) -> None:
    if not reply.workers:
        say(f"The router at {address} has no workers.")
        return
    write_table(WORKER_COLUMNS, [_worker_row(worker, restarting) for worker in reply.workers])
    if pairs := sorted(_pair_rows(reply)):
        write("\n")
        write_table(PAIR_COLUMNS, pairs)
    write("\n")
    write_table(CLASS_COLUMNS, list(map(_class_row, reply.classes)))
    write("\n" + _router_lines(address, reply))
    write(_metrics_lines(reply))
    write(_upgrade_line(reply))
    write(_accuracy_lines(reply))


def _worker_row(worker: pb.WorkerStatus, restarting: Container[str]) -> list[str]:
    return [
        worker.member.worker.worker_id,
        _role(worker),
        _state(worker, restarting),
        str(worker.load.num_running),
        str(worker.load.num_waiting),
        f"{worker.load.num_free_blocks} of {worker.load.num_blocks}",
        str(worker.cached_grains),
        f"{worker.predicted_hit_tokens}, {worker.actual_hit_tokens}",
        f"{worker.index_age_seconds:.1f} s",
        worker.member.worker.address,
    ]


def _pair_rows(reply: pb.StatusResponse) -> Iterator[list[str]]:
    """A row a pair, as its receiver says: it has checked what it counts. What no receiver
    reports is as the writer says."""
    known = set()
    for direction in (pb.PAIR_DIRECTION_RECEIVED, pb.PAIR_DIRECTION_SENT):
        for worker in reply.workers:
            for pair in worker.load.pairs:
                ends = [worker.member.worker.worker_id, pair.peer]
                if direction == pb.PAIR_DIRECTION_RECEIVED:
                    ends.reverse()
                key = (*ends, pair.transport)
                if pair.direction == direction and key not in known:
                    known.add(key)
                    yield [*key, *_pair_figures(pair)]


def _pair_figures(pair: pb.PairReport) -> list[str]:
    write_s = pair.write_seconds.sum
    return [
        str(pair.transfers),
        f"{pair.bytes / 2**20:.1f} MiB",
        f"{pair.bytes / write_s / 1e9:.2f}" if write_s else "",
        str(sum(each.count for each in pair.failures if each.reason == GIVEN_UP)),
        _failures(pair),
        str(pair.quarantined_blocks),
    ]


def _failures(pair: pb.PairReport) -> str:
    """The number, and the most frequent reason."""
    failures = [failure for failure in pair.failures if failure.reason != GIVEN_UP]
    if not failures:
        return "0"
    most = max(failures, key=lambda failure: failure.count)
    num = sum(failure.count for failure in failures)
    return f"{num} ({most.reason} while {most.phase})"


def _router_lines(address: str, reply: pb.StatusResponse) -> str:
    relay = reply.relay
    age_s = max((worker.index_age_seconds for worker in reply.workers), default=0.0)
    gaps = sum(worker.watch_gaps for worker in reply.workers)
    return (
        f"router {address} · {reply.requests_in_flight} requests in flight ·"
        f" {relay.placed} placed, {relay.moved} of them again · {relay.tokens} tokens relayed\n"
        f"{_waiting_line(reply.waiting)}"
        f"{_certificate_lines(reply)}"
        f"{_callers_lines(reply.callers)}"
        f"index {reply.index_grains} grains, {reply.index_bytes / 2**20:.1f} MiB,"
        f" {reply.expected_grains} more expected ·"
        f"{' warming up ·' if reply.warming_up else ''}"
        f" {age_s:.1f} s old, {gaps} gaps, {reply.forgotten_grains} forgotten ·"
        f" {relay.predicted_hit_tokens} cached tokens predicted,"
        f" {relay.actual_hit_tokens} found\n"
    )


def _metrics_lines(reply: pb.StatusResponse) -> str:
    """Says where Prometheus scrapes; of many workers, where it learns that."""
    scraped = {each.member.worker.worker_id: each.member.metrics for each in reply.workers}
    told = [f"{name} {address}" for name, address in scraped.items() if address]
    if len(told) > _MOST_SCRAPED:
        told = [f"{len(told)} workers"]
    if reply.metrics:
        at = Endpoint.parse(reply.metrics).to_dial
        told.insert(0, f"http://{at}/metrics, workers as /metrics/targets there says")
    return f"metrics {' · '.join(told)}\n" if told else ""


def _upgrade_line(reply: pb.StatusResponse) -> str:
    """Tells, while workers speak two wire versions, which do."""
    by_version: dict[int, list[str]] = {}
    for each in reply.workers:
        if each.member.worker.incarnation:
            worker = each.member.worker
            by_version.setdefault(worker.fingerprint.wire_version, []).append(worker.worker_id)
    if len(by_version) < 2:
        return ""
    told = [f"{version} at {', '.join(names)}" for version, names in sorted(by_version.items())]
    return f"being upgraded: no KV moves between wire versions {'; '.join(told)}\n"


def _waiting_line(waiting: pb.WaitingStatus) -> str:
    if not waiting.requests:
        return ""
    return (
        f"{waiting.requests} requests wait for a decode worker that is expected back,"
        f" {waiting.bytes / 2**20:.1f} MiB, the longest for {waiting.longest_seconds:.1f} s\n"
    )


def _certificate_lines(reply: pb.StatusResponse) -> str:
    if not reply.HasField("certificate"):
        return ""
    shown = reply.certificate
    days = shown.left_seconds / 86_400
    holds = f"holds for {days:.0f} days" if days > 0 else "HAS ENDED"
    asked = ", who show one of their own" if shown.asks_clients else ""
    wrong = f"THE CERTIFICATE IS NOT AS ITS FILES SAY: {shown.error}\n" if shown.error else ""
    return f"TLS to clients{asked} · the certificate for {', '.join(shown.names)} {holds}\n{wrong}"


def _callers_lines(callers: pb.CallersStatus) -> str:
    if not callers.asked:
        return "callers are asked for no API key: all are the tenant 'default'\n"
    unchecked = f", {callers.unchecked} quotas unchecked" if callers.unchecked else ""
    wrong = f"KEYS ARE NOT AS THEIR FILE SAYS: {callers.error}\n" if callers.error else ""
    return f"callers have API keys: {callers.keys} · {callers.refused} refused{unchecked}\n{wrong}"


def _class_row(each: pb.ClassStatus) -> list[str]:
    return [
        each.name,
        f"{each.ttft_seconds:g} s" if each.ttft_seconds else "",
        f"{1000 * each.itl_seconds:g} ms" if each.itl_seconds else "",
        str(each.placed),
        str(each.rejected),
        _share(each.in_time, each.started),
        _share(each.steady, each.finished),
        f"{each.answer_tokens:.0f}",
    ]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _accuracy_lines(reply: pb.StatusResponse) -> str:
    ttft, itl = reply.accuracy.ttft, reply.accuracy.itl
    shortage = "short of workers: tenants' shares count\n" if reply.short_of_workers else ""
    if not ttft.samples:
        return shortage
    return (
        f"actual / predicted TTFT {_ratios(ttft)}, ITL {_ratios(itl)};"
        f" {1000 * ttft.bias:+.0f} ms and {1000 * itl.bias:+.1f} ms on average\n{shortage}"
    )


def _ratios(errors: pb.PredictionErrors) -> str:
    ratio = errors.ratio
    return f"{ratio.p50:.2f} (p90 {ratio.p90:.2f}, p99 {ratio.p99:.2f})"
