"""A worker's configuration that no worker could run by is refused when it is read."""

from typing import Any

import pytest

from cluster.config import parse_config
from cluster.errors import ConfigError
from decode_worker.config import DecodeWorkerConfig

GIVEN = {
    "checkpoint": "c",
    "model": "m",
    "worker_id": "w",
    "router": "r:1",
    "secrets_file": "s",
    "run_dir": "d",
}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"block_size": 7}, "'block_size' is 7 and 'hash_grain' 16: give sizes of which one"),
        ({"block_size": 0}, "'hash_grain' are 1 or more"),
        ({"num_blocks": 0}, "'hash_grain' are 1 or more"),
        ({"num_threads": 100_000}, "'num_threads' is 100000: give 1 to 1024"),
    ],
)
def test_sizes_that_no_worker_has(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(DecodeWorkerConfig, {**GIVEN, **wrong})
    assert sentence in caught.value.message


def test_blocks_may_be_smaller_and_larger_than_grains() -> None:
    for block_size in (1, 8, 16, 64):
        config = parse_config(DecodeWorkerConfig, {**GIVEN, "block_size": block_size})
        assert config.block_size == block_size
