"""A wrong configuration is refused before anything serves, with a sentence that names the place."""

from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.errors import StartupError
from router.config import RouterConfig
from router.policy import Disaggregate
from router.router import Router
from tests.router.router_process import write_config


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hash_grian": 16}, "hash_grain"),
        ({"limits": {"max_m": 1}}, "max_n"),
        ({"limits": {"max_n": 0}}, "'max_n' is 0: it must be at least 1"),
        ({"limits": {"max_output_tokens": 0}}, "max_output_tokens"),
        ({"limits": {"max_logprobs": -1}}, "max_logprobs"),
        ({"limits": {"max_deadline_s": 0}}, "max_deadline_s"),
        ({"assumed": {"transfer_bytes_per_s": 0}}, "transfer_bytes_per_s"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"drain_s": -1}, "drain_s"),
        ({"unread_s": 0}, "unread_s"),
        ({"store": "rediss"}, "redis://HOST:PORT/DB"),
        ({"store": "http://localhost"}, "redis://HOST:PORT/DB"),
        ({"metrics": "here"}, "'metrics': 'here' is no HOST:PORT"),
        (
            {"address": "127.0.0.1:7", "metrics": "127.0.0.1:7"},
            "'metrics' is '127.0.0.1:7', where clients come in",
        ),
        ({"internal": "here"}, "'internal': 'here' is no HOST:PORT"),
        (
            {"address": "127.0.0.1:7", "internal": "127.0.0.1:7"},
            "where clients come in ('address')",
        ),
        (
            {"internal": "0.0.0.0:0"},
            "'internal' is '0.0.0.0:0', where others than this machine may",
        ),
        ({"disaggregate": "sometimes"}, "disaggregate"),
        ({"checkpoint": "/nowhere"}, "/nowhere"),
        ({"secrets_file": "/nowhere"}, "/nowhere"),
        ({"context_length": 10**9}, "context_length"),
    ],
)
async def test_a_wrong_value_is_named(
    checkpoint: Path, tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(StartupError) as caught:
        Router(load_config(RouterConfig, write_config(tmp_path, checkpoint, **settings)))
    assert sentence in str(caught.value)


def test_everything_may_be_set(checkpoint: Path, tmp_path: Path) -> None:
    path = write_config(
        tmp_path,
        checkpoint,
        disaggregate="always",
        limits={"max_n": 2},
        assumed={"decode": {"d0": 0.5}},
        drain_s=1,
    )
    config = load_config(RouterConfig, path)
    assert config.document.policy().disaggregate is Disaggregate.ALWAYS
    assert config.assumed.decode.d0 == 0.5
    assert (config.limits.max_n, config.drain_s) == (2, 1.0)
