"""The file of keys: what is believed of it, and that routers follow it, whatever is done to it."""

import asyncio
import json
import logging
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.errors import ConfigError, Unauthenticated
from penstock.v1 import inference_pb2 as pb
from router.callers.callers import Callers
from router.callers.follow import KeyFileFollower
from router.callers.key_file import MAX_FILE_BYTES, MAX_KEYS, ApiKey, new_key, read_keys
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import Faults
from tests.router.http_clients import asked
from tests.router.keyed import entry, shown, write_keys

OLD, NEW = new_key(), new_key()
HASH = entry(OLD)["api_key_sha256"]
BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not valid JSON"),
    "no JSON": (b"keys: [", "line 1, column 1"),
    "half of it": (b'{"keys": [{"id": "a", ', "line 1, column"),
    "no UTF-8": (b'{"keys": "\xff\xfe"}', "no UTF-8"),
    "no object": (b"[]", "give keys with values"),
    "an object in place of keys": (b'{"keys": {}}', "keys"),
    "another key": (b'{"keys": [], "admin": true}', "unknown key"),
    "a name twice": (b'{"keys": [], "keys": []}', "given twice"),
    "nested for ever": (b'{"keys":' + b"[" * 100_000, "nested too deeply"),
    "ids that are the same": (
        json.dumps({"keys": [entry(OLD), entry(NEW)]}).encode(),
        "two ids that are the same, of 'acme'",
    ),
    "a key of two": (
        json.dumps({"keys": [entry(OLD), entry(OLD, "rival")]}).encode(),
        "two keys that are the same, of 'rival'",
    ),
    "a tenant that is no name": (json.dumps({"keys": [entry(OLD, "A b")]}).encode(), "no name of"),
    "no hash": (
        json.dumps({"keys": [{**entry(OLD), "api_key_sha256": "x"}]}).encode(),
        "64 hexadecimal digits",
    ),
    "a limit of 0": (
        json.dumps({"keys": [entry(OLD, max_in_flight=0)]}).encode(),
        "max_in_flight' is 0",
    ),
    "a limit that is a text": (
        json.dumps({"keys": [entry(OLD, max_requests_per_minute="6")]}).encode(),
        "max_requests_per_minute",
    ),
    "too many": (
        json.dumps({"keys": [{**entry(OLD), "id": f"k{i}"} for i in range(MAX_KEYS + 1)]}).encode(),
        f"at most {MAX_KEYS}",
    ),
    "too large": (b" " * (MAX_FILE_BYTES + 1), "more than 2097152 bytes"),
}


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_wrong_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    content, said = BROKEN[name]
    path = written(tmp_path / "keys.json", content)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 1_000


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o777])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "keys.json", b'{"keys": []}', mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        read_keys(path)


@pytest.mark.parametrize(
    "content",
    [
        OLD,
        json.dumps(OLD),
        json.dumps({"keys": [OLD]}),
        json.dumps({OLD: []}),
        json.dumps({"keys": [{**entry(NEW), "api_key_sha256": OLD}]}),
        json.dumps({"keys": [{**entry(NEW), "id": OLD}]}),
        json.dumps({"keys": [{**entry(NEW), "max_in_flight": OLD}]}),
    ],
    ids=range(7),
)
def test_a_key_that_was_written_into_it_by_mistake_is_not_told(
    tmp_path: Path, content: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_keys(written(tmp_path / "keys.json", content.encode()))
    assert OLD[4:12] not in caught.value.message


def test_no_hash_shows_where_a_key_is_printed() -> None:
    assert HASH not in repr(ApiKey(**entry(OLD)))


def test_a_router_does_not_start_on_keys_that_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyFileFollower(tmp_path / "nowhere.json", Callers())


async def followed(path: Path) -> tuple[Callers, KeyFileFollower]:
    callers = Callers()
    return callers, KeyFileFollower(path, callers)


async def looked(follower: KeyFileFollower) -> None:
    """What two looks find the same is believed."""
    await follower.look()
    await follower.look()


def knows(callers: Callers, key: str) -> bool:
    try:
        callers.identify([f"Bearer {key}"])
    except Unauthenticated:
        return False
    return True


@pytest.mark.parametrize("name", [*BROKEN, "gone", "open to others", "a directory"])
async def test_the_last_good_keys_stay_whatever_becomes_of_their_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)
    path = write_keys(tmp_path / "keys.json", entry(OLD))
    callers, follower = await followed(path)
    path.unlink()
    if name in BROKEN:
        written(path, BROKEN[name][0])
    elif name == "open to others":
        written(path, json.dumps({"keys": [entry(NEW)]}).encode(), 0o644)
    elif name == "a directory":
        path.mkdir()
    await looked(follower)
    await looked(follower)
    assert (knows(callers, OLD), knows(callers, NEW)) == (True, False)
    assert str(path) in callers.error
    assert [r.levelname for r in caplog.records].count("WARNING") == 1, "said once"
    if path.is_dir():
        path.rmdir()
    write_keys(path, entry(NEW))
    await looked(follower)
    assert (knows(callers, OLD), knows(callers, NEW), callers.error) == (False, True, "")


async def test_a_file_that_is_being_written_is_not_believed_yet(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json", entry(OLD))
    callers, follower = await followed(path)
    whole = json.dumps({"keys": [entry(OLD), entry(NEW, "rival")]}).encode()
    for end in (len(whole) // 3, len(whole) // 2, len(whole)):
        path.write_bytes(whole[:end])
        await follower.look()
        assert (knows(callers, OLD), knows(callers, NEW), callers.error) == (True, False, "")
    await follower.look()
    assert knows(callers, NEW)


async def test_a_symlink_that_is_swapped_is_followed(tmp_path: Path) -> None:
    first = write_keys(tmp_path / "first.json", entry(OLD))
    second = write_keys(tmp_path / "second.json", entry(NEW))
    link = tmp_path / "keys.json"
    link.symlink_to(first)
    callers, follower = await followed(link)
    swapped = tmp_path / "swapped"
    swapped.symlink_to(second)
    swapped.replace(link)
    await looked(follower)
    assert (knows(callers, OLD), knows(callers, NEW)) == (False, True)


async def test_who_came_and_went_stands_in_the_log_by_tenant_and_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = write_keys(tmp_path / "keys.json", entry(OLD), entry(NEW, "rival"))
    _, follower = await followed(path)
    third = new_key()
    write_keys(path, entry(OLD, max_in_flight=3), entry(third, "third"))
    await looked(follower)
    told: list[Any] = [(r.getMessage(), getattr(r, "fields", {})) for r in caplog.records]
    assert [each for each in told if each[0].startswith("caller ")] == [
        ("caller revoked", {"tenant": "rival", "key": "rival", "audit": "callers"}),
        ("caller changed", {"tenant": "acme", "key": "acme", "audit": "callers"}),
        ("caller added", {"tenant": "third", "key": "third", "audit": "callers"}),
    ]
    assert told[0][0] == "keys loaded: 2 keys"
    assert told[-1][0] == "keys reloaded: 2 keys"
    assert not any(word[4:] in str(told) for word in (OLD, NEW, third, HASH))


async def is_let_in(cluster: Cluster, key: str) -> bool:
    """By one of the doors at least."""
    reply = await asked(cluster, "GET", "/v1/models", authorization=f"Bearer {key}")
    code = await cluster.inference.GetModel(pb.GetModelRequest(), metadata=shown(key)).code()
    assert reply.status in (200, 401)
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
    return reply.status == 200 or code is grpc.StatusCode.OK


@pytest.mark.slow
async def test_a_revoked_key_is_out_of_every_router_within_two_seconds_and_streams_go_on(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = write_keys(tmp_path / "keys.json", entry(OLD), entry(NEW, "rival"))
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(Cluster(checkpoint, tmp_path, keys_file=path))
            for _ in range(2)
        ]
        faults = Faults(stall_after=1)
        worker = await stack.enter_async_context(one.worker("d0", text="a", faults=faults))
        await one.serving(worker)
        request = pb.GenerateRequest(text="hello")
        running = one.inference.Generate(request, metadata=shown(OLD), timeout=30)
        messages = aiter(running)
        assert (await anext(messages)).HasField("accepted")
        assert [await is_let_in(router, OLD) for router in (one, two)] == [True, True]
        write_keys(path, entry(NEW, "rival"))
        began = time.monotonic()
        async with asyncio.timeout(10):
            while await is_let_in(one, OLD) or await is_let_in(two, OLD):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert time.monotonic() - began < 2.0
        assert [await is_let_in(router, NEW) for router in (one, two)] == [True, True]
        worker.resume()
        assert [message async for message in messages][-1].HasField("finished")
