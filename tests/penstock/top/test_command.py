"""`penstock top` for scripts: one table, or one value, and an exit code."""

from pathlib import Path

import pytest

from penstock.cli.top.columns import COLUMNS
from tests.penstock.command_line import Penstock
from tests.penstock.top.served import served_apart
from tests.penstock.top.told import series

NO_SERVING = {"decode-1": {series("penstock_worker_serving"): 0.0}}


@pytest.fixture(autouse=True)
def _no_cluster_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)


@pytest.mark.slow
def test_a_table_of_all_workers_for_who_has_no_terminal(penstock: Penstock) -> None:
    """And none of the cluster's secrets."""
    with served_apart("prefill-0", "decode-0") as cluster:
        told = penstock("top", "--metrics", str(cluster.url), "--interval", "0.2")
    assert (told.code, told.err) == (0, "")
    head, table = told.out.split("\n\n")
    assert "policy generation 1 (abcdef01), none on trial" in head
    assert "3 in flight" in head
    assert "NaN" not in told.out
    assert "nan" not in told.out
    titles, decode, prefill = table.splitlines()
    assert titles.split() == [column.title for column in COLUMNS]
    assert decode.split()[:3] == ["decode-0", "decode", "serving"]
    assert prefill.split()[:3] == ["prefill-0", "prefill", "serving"]
    assert decode.split()[3:6] == ["-", "2", "-"]  # it tells of no queue


@pytest.mark.slow
def test_a_value_for_scripts_says_what_is_missing(penstock: Penstock) -> None:
    with served_apart("decode-0", "decode-1", numbers=NO_SERVING) as cluster:
        told = penstock("top", "--metrics", str(cluster.url), "--interval", "0.2", "--json")
    assert told.code == 8
    value = told.json
    assert value["router"]["num_in_flight"] == 3
    assert value["router"]["traffic"]["ttft_p99_s"] is None
    assert {each["name"]: each["health"] for each in value["workers"]} == {
        "decode-0": "serving",
        "decode-1": "not serving",
    }
    assert value["concerns"][0]["worker"] == "decode-1"
    assert value["late"] is None
    assert "--secrets-file" in value["missing"]


@pytest.mark.slow
def test_rows_of_one_role_by_a_column(penstock: Penstock) -> None:
    numbers = {"decode-1": {series("penstock_requests_running"): 9.0}}
    with served_apart("decode-0", "decode-1", "prefill-0", numbers=numbers) as cluster:
        options = ["--once", "--sort", "running", "--role", "decode", "--interval", "0.2"]
        told = penstock("top", "--metrics", str(cluster.url), *options)
    rows = told.out.split("\n\n")[1].splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["decode-1", "decode-0"]


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--metrics", "127.0.0.1:1"], 4, "nobody listens there"),
        (["--metrics", "ftp://x"], 2, "http://HOST:PORT/metrics"),
        (["--metrics", "127.0.0.1:1", "--sort", "beauty"], 2, "'--sort beauty' is none of worker,"),
        (["--metrics", "127.0.0.1:1", "--role", "both"], 2, "none of prefill, decode"),
        ([], 4, "--secrets-file"),
    ],
)
def test_wrong_use_ends_with_a_sentence(
    penstock: Penstock, options: list[str], code: int, sentence: str
) -> None:
    told = penstock("top", "--once", "--interval", "0.2", *options)
    assert (told.code, told.out) == (code, "")
    assert sentence in told.err
