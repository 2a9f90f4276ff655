"""`penstock cluster`: descriptions of clusters as files; and `penstock serve -f`, which refuses
what it cannot start from before anything starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.cli.cluster_options import ServeFlags, plan_of
from router.policy import Disaggregate
from tests.penstock.command_line import Penstock

Write = Callable[[str, str], str]
ENVELOPE = "apiVersion: penstock/v1\nkind: Cluster\nmetadata: {name: mine}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("HOME", str(tmp_path))

    def description(name: str, spec: str) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"{ENVELOPE}spec: {spec}\n")
        return str(path)

    return description


def test_check_tells_valid_risky_and_invalid_apart(penstock: Penstock, write: Write) -> None:
    valid, risky = write("valid", "{}"), write("risky", "{insecure: true}")
    broken = write("broken", "{pols: []}")
    assert penstock("cluster", "check", valid) == (0, f"{valid}: valid\n", "")
    ended = penstock("cluster", "check", valid, risky)
    assert ended.code == 3
    assert f"{risky}: risky\n  line 4: 'spec.insecure' is true" in ended.out
    ended = penstock("cluster", "check", risky, broken, valid, "--json")
    assert ended.code == 1
    assert [found["verdict"] for found in ended.json] == ["risky", "invalid", "valid"]
    assert ended.json[1]["findings"] == [
        {"line": 4, "sentence": "'pols' in 'spec' is an unknown key: did you mean 'pools'?"}
    ]
    assert ended.json[2]["name"] == "mine"
    assert penstock("cluster", "check").code == 2


def test_what_show_prints_is_the_same_cluster(
    penstock: Penstock, write: Write, tmp_path: Path
) -> None:
    mine = write("mine", "{pools: [{name: a, role: decode, kvPool: 1GiB}], drain: 90s}")
    shown = tmp_path / "shown.yaml"
    for options in ((), ("--effective",)):
        shown.write_text(penstock("cluster", "show", mine, *options).out)
        assert penstock("cluster", "check", str(shown)).code == 0
        assert penstock("cluster", "diff", mine, str(shown)) == (0, "", "")
    assert "hashGrain: 16" in shown.read_text()
    assert penstock("cluster", "show", "--json").json["spec"] == {}


def test_diff_names_what_changes_in_meaning(penstock: Penstock, write: Write) -> None:
    before = write("before", "{pools: [{name: a, role: decode}, {name: b, role: prefill}]}")
    after = write(
        "after", "{pools: [{name: b, role: prefill}, {name: a, role: decode, chunk: 1s}]}"
    )
    ended = penstock("cluster", "diff", before, after)
    assert (ended.code, ended.out) == (1, "spec.pools[a].chunk: 250ms -> 1s\n")
    assert penstock("cluster", "diff", before, write("broken", "{x: 1}")).code == 2


def test_the_schema_is_printed(penstock: Penstock) -> None:
    assert penstock("cluster", "schema").json["title"] == "Penstock Cluster"
    assert penstock("cluster", "schema", "--json").out.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "options", "sentence"),
    [
        ("{pools: []}", (), "'spec.pools' has no decode worker at the start"),
        ("{}", ("--prefill", "2"), "Give '--prefill' or '--file': there each pool says it."),
        ("{}", ("--num-blocks", "9"), "Give '--num-blocks' or '--file': there each pool says it."),
        ("{checkpoint: nowhere}", (), "as 'checkpoint' in the cluster's file"),
        ("{policyFile: nowhere.yaml}", (), "nowhere.yaml' cannot be read"),
        ("{routers: {bind: 192.0.2.77}, insecure: true}", (), "192.0.2.77 is no address of this"),
        ("{}", ("--host", "0.0.0.0"), "add --insecure"),
    ],
)
def test_serve_refuses_before_anything_starts(
    penstock: Penstock, write: Write, spec: str, options: tuple[str, ...], sentence: str
) -> None:
    ended = penstock("serve", "-f", write("mine", spec), *options)
    assert ended.code == 2
    assert sentence in ended.err


def test_serve_tells_what_is_risky_and_what_it_leaves_out(penstock: Penstock, write: Write) -> None:
    """It ends by the last one, before it starts."""
    spec = "{limits: {defaultDeadline: 2h}, checkpoint: nowhere, pools: [{name: d, role: decode,"
    ended = penstock(
        "serve", "-f", write("mine", f"{spec} maxWorkers: 4, labels: {{zone: a}}}}]}}")
    )
    assert "warning: 'spec.limits.defaultDeadline' is longer" in ended.err
    assert "warning: pool 'd' stays at 1 workers" in ended.err
    assert "warning: pool 'd' has labels" in ended.err


def test_what_is_said_goes_before_what_the_file_says(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(write("mine", "{model: a, drain: 9s, transports: [tcp], routers: {ports: [7000]}}"))
    plain = plan_of(ServeFlags(file=file))
    assert (plain.model, plain.drain_s, plain.port) == ("a", 9.0, 7000)
    assert (plain.transports, plain.name) == (("tcp",), "mine")
    said = plan_of(
        ServeFlags(
            file=file,
            model="b",
            drain=1.0,
            port=0,
            transport="shared_memory",
            disaggregate=Disaggregate.NEVER,
        )
    )
    assert (said.model, said.drain_s, said.port) == ("b", 1.0, 0)
    assert said.transports == ("shared_memory",)
    assert said.require_transport == "shared_memory"
    assert said.router["disaggregate"] == "never"
    assert [plain.http_port, said.http_port] == [0, 0]
    assert plan_of(ServeFlags()).http_port == 8000
    assert plan_of(ServeFlags(port=0, http_port=9)).http_port == 9
    assert plan_of(ServeFlags(no_http=True)).http_port is None
