"""A wrong value in a worker's file is refused before any memory is taken, with a sentence that
names its key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.authority import PLAIN, Credentials, create_authority
from cluster.config import load_config
from cluster.errors import ConfigError
from decode_worker.config import DecodeWorkerConfig
from prefill_worker.config import PrefillWorkerConfig
from tests.workers.answers import greedy, prompt_of
from tests.workers.local_cluster import LocalCluster

NEEDED = {"checkpoint": "c", "model": "m", "worker_id": "w", "router": "r:1"}
NEEDED |= {"secrets_file": "s", "run_dir": "d"}


def load(cls: type, directory: Path, settings: dict[str, Any]) -> Any:
    path = directory / "worker.yaml"
    path.write_text(yaml.safe_dump({**NEEDED, **settings}))
    return load_config(cls, path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_blocks": -1}, "'num_blocks' is -1: it must be at least 1."),
        ({"metrics": "9000"}, "'metrics': '9000' is no HOST:PORT"),
        ({"block_size": 0}, "'block_size' is 0"),
        ({"block_size": 24}, "'block_size' is 24 and 'hash_grain' 16: one must divide the other."),
        ({"hash_grain": 0}, "'hash_grain' is 0"),
        ({"num_threads": 0}, "'num_threads' is 0"),
        ({"num_threads": 100_000}, "'num_threads' is 100000: it must be at most 1024."),
        ({"max_sequences": 0}, "'max_sequences' is 0"),
        ({"max_batch_tokens": 0}, "'max_batch_tokens' is 0"),
        ({"max_waiting": -1}, "'max_waiting' is -1: it must be at least 0."),
        ({"chunk_s": 0}, "'chunk_s' is 0.0: it must be above 0."),
        ({"lease_s": 0}, "'lease_s' is 0.0"),
        ({"fetch_s": -1}, "'fetch_s' is -1.0"),
        ({"drain_s": -1}, "'drain_s' is -1.0"),
        ({"probe_tokens": -5}, "'probe_tokens' is -5"),
        ({"tcp_port": 70000}, "'tcp_port' is 70000: it must be at most 65535."),
        ({"tcp_streams": 0}, "'tcp_streams' is 0"),
        ({"transports": []}, "'transports'"),
        ({"transports": ["tcp", "pigeon"]}, "'transports' names pigeon: choose from"),
        ({"address": "0.0.0.0:7001", "advertise": "::"}, "'advertise' is '::', which nobody can"),
        (
            {"address": "10.0.0.2:1", "advertise": "10.0.0.2:2"},
            "'advertise' is '10.0.0.2:2', which",
        ),
        ({"address": "10.0.0.2:1", "advertise": "http://a"}, "'advertise' is 'http://a', which"),
        ({"advertise": "10.0.0.2"}, "one of them is for this machine alone"),
        ({"address": ":7001"}, "'address' is ':7001'"),
        ({"address": "here"}, "'address' is 'here'"),
        ({"address": "here:70000"}, "'address' is 'here:70000'"),
        ({"router": "there"}, "'router' is 'there': give the router's HOST:PORT"),
        ({"router": "redis:/there/0"}, "redis://HOST:PORT/DB"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(DecodeWorkerConfig, tmp_path, settings)
    assert sentence in str(caught.value)


def test_each_role_looks_at_its_own_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'grant_s' is 0\.0: it must be above 0"):
        load(DecodeWorkerConfig, tmp_path, {"grant_s": 0})
    with pytest.raises(ConfigError, match=r"'watermark' is 7\.0: it must be at most 1"):
        load(PrefillWorkerConfig, tmp_path, {"watermark": 7})
    with pytest.raises(ConfigError, match="'num_blocks'"):
        load(PrefillWorkerConfig, tmp_path, {"num_blocks": 0})


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    settings = {"address": "[::1]:0", "block_size": 4, "transports": ["tcp"], "probe_tokens": 0}
    config = load(PrefillWorkerConfig, tmp_path, {**settings, "require_transport": "tcp"})
    assert (config.address, config.block_size, config.transports) == ("[::1]:0", 4, ("tcp",))


def test_where_it_listens_and_what_others_dial_may_differ(tmp_path: Path) -> None:
    settings = {"address": "0.0.0.0:7001", "advertise": "decode-a.internal"}
    config = load(DecodeWorkerConfig, tmp_path, settings)
    assert str(config.dialled) == "decode-a.internal:7001"


AUTHORITY = Credentials(create_authority())
NIXL = {"transports": ["shared_memory", "nixl"]}


@pytest.mark.parametrize(
    ("settings", "credentials", "sentence"),
    [
        ({"address": "10.0.0.2:7001"}, PLAIN, "holds no authority for TLS: draw one that does"),
        ({"address": "0.0.0.0:0", "advertise": "a"}, PLAIN, "or say 'insecure: true' where"),
        ({"address": "10.0.0.2:7001", **NIXL}, AUTHORITY, "KV by nixl has no TLS: take it out"),
    ],
)
def test_what_others_could_read_is_not_sent_without_a_word(
    tmp_path: Path, settings: dict[str, Any], credentials: Credentials, sentence: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(DecodeWorkerConfig, tmp_path, settings).check_ways(credentials)
    assert sentence in str(refused.value)
    load(DecodeWorkerConfig, tmp_path, {**settings, "insecure": True}).check_ways(credentials)


def test_what_nobody_can_read_needs_no_word(tmp_path: Path) -> None:
    load(DecodeWorkerConfig, tmp_path, {"address": "10.0.0.2:7001"}).check_ways(AUTHORITY)
    load(DecodeWorkerConfig, tmp_path, {"address": "127.0.0.1:0", **NIXL}).check_ways(PLAIN)


async def test_all_bytes_of_the_weights_may_be_compared(checkpoint: Path, tmp_path: Path) -> None:
    worker = {"verify_weights": True}
    cluster = LocalCluster(
        checkpoint, tmp_path, verify_weights=True, decode=[worker], prefill=[worker]
    )
    async with cluster:
        assert await cluster.generate(greedy(prompt_of(1, 20), 4))
