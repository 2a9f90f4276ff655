"""`penstock keys` writes who may call, and shows a key once."""

import concurrent.futures
import stat
from pathlib import Path

import pytest

from router.callers.callers import Callers
from router.callers.key_file import read_keys
from tests.penstock.command_line import Penstock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_printed_once_and_its_hash_kept(penstock: Penstock, path: Path) -> None:
    limits = ("--requests", "60", "--tokens", "1000", "--in-flight", "4", "--class", "chat")
    ended = penstock("keys", "add", str(path), "--tenant", "acme", *limits)
    assert ended.code == 0
    key = ended.out.strip()
    assert key.startswith("psk-")
    assert len(key) == 47
    assert key not in ended.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key[4:] not in path.read_text()
    found = Callers(read_keys(path)).identify([f"bearer {key}"])
    assert (found.tenant, found.service_class, found.max_in_flight) == ("acme", "chat", 4)
    assert (found.max_requests_per_minute, found.max_tokens_per_minute) == (60, 1000)
    shown = penstock("keys", "list", str(path))
    assert key[4:] not in shown.out + shown.err
    assert found.api_key_sha256 not in shown.out
    [listed] = penstock("keys", "list", str(path), "--json").json
    assert (listed["id"], listed["tenant"], listed["in_flight"]) == (found.id, "acme", 4)


def test_a_key_is_revoked_by_its_id(penstock: Penstock, path: Path) -> None:
    first = penstock("keys", "add", str(path), "--tenant", "acme", "--id", "one", "--json").json
    second = penstock("keys", "add", str(path), "--tenant", "acme", "--json").json
    assert first["id"] == "one"
    assert first["api_key"] != second["api_key"]
    assert penstock("keys", "revoke", str(path), "one", "--json").json == {"revoked": "one"}
    assert [key.id for key in read_keys(path).keys] == [second["id"]]
    ended = penstock("keys", "revoke", str(path), "one")
    assert ended.code == 2
    assert f"There is no key 'one': known are {second['id']}." in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "FILE", "--tenant", "A b"), "lower-case letters"),
        (("add", "FILE", "--tenant", "a", "--class", "B!"), "no name of a class"),
        (("add", "FILE", "--tenant", "acme", "--id", "one"), "two ids that are the same, of 'one'"),
        (("add", "NOWHERE/keys.json", "--tenant", "a"), "cannot be written"),
        (("list", "NOWHERE"), "cannot be read"),
        (("revoke", "NOWHERE", "one"), "cannot be"),
        (("list", "OPEN"), "chmod 600"),
        (("add", "OPEN", "--tenant", "a"), "chmod 600"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_changed(
    penstock: Penstock, path: Path, words: tuple[str, ...], said: str
) -> None:
    penstock("keys", "add", str(path), "--tenant", "acme", "--id", "one")
    before = path.read_bytes()
    other = path.with_name("open.json")
    other.write_bytes(before)
    other.chmod(0o644)
    named = {"FILE": str(path), "OPEN": str(other)}
    given = [named.get(word, word.replace("NOWHERE", str(path.parent / "no"))) for word in words]
    ended = penstock("keys", *given)
    assert ended.code == 2
    assert said in ended.err
    assert "psk-" not in ended.out
    assert path.read_bytes() == other.read_bytes() == before


def test_who_change_it_at_once_wait_for_each_other(penstock: Penstock, path: Path) -> None:
    from penstock.cli.keys import add

    def one(number: int) -> None:
        add(path, "acme", name=f"k{number}", json=True)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(40)))
    assert {key.id for key in read_keys(path).keys} == {f"k{number}" for number in range(40)}
    assert [each.name for each in path.parent.iterdir()].count("keys.json") == 1


def test_a_symlink_is_written_through(penstock: Penstock, path: Path) -> None:
    link = path.with_name("link.json")
    penstock("keys", "add", str(path), "--tenant", "acme")
    link.symlink_to(path)
    penstock("keys", "add", str(link), "--tenant", "rival")
    assert link.is_symlink()
    assert [key.tenant for key in read_keys(path).keys] == ["acme", "rival"]
