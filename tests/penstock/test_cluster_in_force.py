"""`penstock cluster diff -f FILE`: what of a cluster's file differs from what runs, in the words of
the file, and what follows."""

from pathlib import Path

from deploy.cluster_file.document import ClusterDocument
from deploy.cluster_file.kind import CLUSTER
from penstock import __version__
from penstock.cli.in_force import InForce, in_force
from penstock.v1 import worker_pb2 as pb

PLACED = "store: redis://127.0.0.1:6379/0, secretsFile: secrets.yaml"


def document(spec: str) -> ClusterDocument:
    text = f"apiVersion: penstock/v1\nkind: Cluster\nmetadata: {{name: lab}}\nspec: {spec}\n"
    return CLUSTER.parse(text, "lab.yaml")


def pools(num_decode: int = 2, *, blocks: int = 64, most: int | None = None) -> str:
    grows = f", maxWorkers: {most}" if most else ""
    decode = f"minWorkers: {num_decode}{grows}, numBlocks: {blocks}"
    return f"pools: [{{name: decode, role: decode, {decode}}}]"


def said(*workers: str, version: str = __version__, flipped: str = "") -> pb.StatusResponse:
    """A router's words, of decode workers and one that was flipped."""
    roles = {**dict.fromkeys(workers, pb.ROLE_DECODE), flipped: pb.ROLE_PREFILL}
    members = [
        pb.WorkerStatus(
            member=pb.RegisterRequest(worker=pb.WorkerAddress(worker_id=name), role=role)
        )
        for name, role in roles.items()
        if name
    ]
    return pb.StatusResponse(workers=members, router_version=version)


def compared(
    file: str, started: str | None, status: pb.StatusResponse, *, is_placed: bool = False
) -> InForce:
    described = None if started is None else document(started)
    there = {"127.0.0.1:1": status}
    return in_force(document(file), Path("/nowhere"), described, there, is_placed=is_placed)


def test_what_runs_as_its_file_says_does_not_differ() -> None:
    for is_placed, spec in ((False, pools()), (True, f"{PLACED}, {pools()}")):
        found = compared(
            f"{{{spec}}}", f"{{{spec}}}", said("decode-0", "decode-1"), is_placed=is_placed
        )
        assert not found.differs
        assert found.as_text() == ""


def test_serve_has_to_be_started_again_for_whatever_differs() -> None:
    file = f"{{{pools(1, blocks=128)}, routers: {{ports: [7000]}}, drain: 5s}}"
    found = compared(file, f"{{{pools()}}}", said("decode-0", "decode-1"))
    assert found.differs
    assert found.as_text().splitlines() == [
        "spec.pools[decode].minWorkers: 1 -> 2",
        "spec.pools[decode].numBlocks: 128 -> 64",
        "spec.routers.ports[0]: 7000 -> 50051",
        "spec.drain: 5s -> 30s",
        "workers[decode-1]: absent -> decode",
        "'penstock serve' reads its file at its start: 'penstock stop', then serve again.",
    ]


def test_up_would_replace_start_and_end_processes_by_name() -> None:
    file = f"{{{PLACED}, {pools(3, blocks=128)}, routers: {{count: 1, ports: [7000]}}}}"
    started = f"{{{PLACED}, {pools()}, routers: {{count: 2}}}}"
    found = compared(file, started, said("decode-0", "decode-1"), is_placed=True)
    assert "spec.pools[decode].numBlocks: 128 -> 64" in found.as_text()
    assert "workers[decode-2]: decode -> absent" in found.as_text()
    assert found.would[:4] == [
        "'penstock up' drains and ends router-1.",
        "'penstock up' starts decode-2.",
        "'penstock up' replaces router-0:"
        ' address: "127.0.0.1:50051" -> "127.0.0.1:7000";'
        ' http: "127.0.0.1:8000" -> "127.0.0.1:0".',
        "'penstock up' replaces decode-0, decode-1: num_blocks: 64 -> 128.",
    ]


def test_up_would_refuse_what_all_of_a_cluster_share() -> None:
    file = f"{{{PLACED}, {pools()}, hashGrain: 32}}"
    found = compared(file, f"{{{PLACED}, {pools()}}}", said("decode-0", "decode-1"), is_placed=True)
    assert found.as_text().splitlines() == [
        "spec.hashGrain: 32 -> 16",
        "'penstock up' refuses it: all of a cluster share hash_grain: 16 -> 32:"
        " 'penstock down lab' first.",
    ]


def test_who_is_away_was_flipped_or_is_of_another_release_is_named() -> None:
    spec = f"{{{pools(3)}}}"
    found = compared(spec, spec, said("decode-0", flipped="decode-1", version="0.0.1"))
    assert found.as_text().splitlines() == [
        "workers[decode-1]: decode -> prefill",
        "workers[decode-2]: decode -> absent",
        f"routers[127.0.0.1:1].version: {__version__} -> 0.0.1",
        "workers[decode-1] was flipped: 'penstock flip decode-1 --to decode'.",
        "workers[decode-2] is not there: it is started again by itself"
        " ('penstock status', 'logs').",
        f"routers[127.0.0.1:1].version: this release is {__version__}: serve again.",
    ]


def test_a_pool_that_grows_has_what_its_planner_wants() -> None:
    spec = f"{{{PLACED}, {pools(1, most=3)}}}"
    for workers in (("decode-0",), ("decode-0", "decode-2")):
        assert not compared(spec, spec, said(*workers), is_placed=True).differs
    found = compared(spec, spec, said("decode-0", "decode-3"), is_placed=True)
    assert found.as_text() == "workers[decode-3]: absent -> decode\n"


def test_without_a_description_what_routers_say_is_compared() -> None:
    found = compared(f"{{{pools(1)}}}", None, said("decode-0"))
    assert (found.described, found.differs) == (None, False)
    assert compared(f"{{{pools(2)}}}", None, said("decode-0")).differs
