"""A configuration is taken as it is meant, or refused with the place and what to do."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import effective_config, load_config, parse_config
from cluster.errors import ConfigError


class Kind(StrEnum):
    MEMORY = "memory"
    REDIS = "redis"


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    kind: Kind = Kind.MEMORY
    url: str | None = None
    ttl_s: float = 3.0

    def __post_init__(self) -> None:
        if (self.kind is Kind.REDIS) != (self.url is not None):
            raise ValueError("give 'kind: redis' and 'url' together.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    address: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    checkpoint: Path
    num_blocks: int = 64
    store: Store = Store()
    fallback: Store | None = None
    peers: tuple[Peer, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    verify_weights: bool = False
    secrets_file: Path | None = None
    api_token: str = ""


def test_a_file_is_taken_as_it_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "worker.yaml"
    path.write_text(
        """
        checkpoint: shipped_model/penstock-tiny
        num_blocks: 128
        store: {kind: redis, url: "redis://127.0.0.1:6379", ttl_s: 5}
        peers:
          - address: 127.0.0.1:1
          - address: 127.0.0.1:2
            weight: 0.5
        labels: {zone: a}
        """
    )
    assert load_config(Config, path) == Config(
        checkpoint=Path("shipped_model/penstock-tiny"),
        num_blocks=128,
        store=Store(kind=Kind.REDIS, url="redis://127.0.0.1:6379", ttl_s=5.0),
        peers=(Peer(address="127.0.0.1:1"), Peer(address="127.0.0.1:2", weight=0.5)),
        labels={"zone": "a"},
    )


WRONG = [
    ({}, "'checkpoint' is missing: it has no default."),
    ({"checkpont": "x"}, "'checkpont' is an unknown key: did you mean 'checkpoint'?"),
    ({"checkpoint": "x", "zzz": 1}, "'zzz' is an unknown key: known are checkpoint, num_blocks"),
    (
        {"checkpoint": "x", "store": {"tll_s": 1}},
        "'tll_s' in 'store' is an unknown key: did you mean 'ttl_s'?",
    ),
    (
        {"checkpoint": "x", "fallback": {"knd": "redis"}},
        "'knd' in 'fallback' is an unknown key: did you mean 'kind'?",
    ),
    (
        {"checkpoint": "x", "peers": [{"address": "a"}, {"adress": "b"}]},
        "'adress' in 'peers[1]' is an unknown key: did you mean 'address'?",
    ),
    ({"checkpoint": "x", "num_blocks": "64"}, "'num_blocks' is \"64\": give a valid integer."),
    ({"checkpoint": "x", "num_blocks": True}, "'num_blocks' is true"),
    ({"checkpoint": "x", "num_blocks": 1.5}, "'num_blocks' is 1.5"),
    ({"checkpoint": "x", "verify_weights": "yes"}, "'verify_weights' is \"yes\""),
    ({"checkpoint": "x", "store": {"ttl_s": float("nan")}}, "'store.ttl_s' is NaN"),
    ({"checkpoint": "x", "store": {"ttl_s": float("inf")}}, "'store.ttl_s' is Infinity"),
    ({"checkpoint": "x", "store": {"kind": "disk"}}, "give 'memory' or 'redis'."),
    ({"checkpoint": "x", "store": {"kind": "redis"}}, "'store': give 'kind: redis' and 'url'"),
    ({"checkpoint": "x", "store": []}, "'store' is []: give keys with values."),
    ({"checkpoint": "x", "store": None}, "'store' is null"),
    ({"checkpoint": 7}, "'checkpoint' is 7"),
    ({"checkpoint": "x", "labels": {"a": 1}}, "'labels.a' is 1: give a valid string, in quotes."),
    ([], "give keys with values, not []."),
    ("x", 'give keys with values, not "x".'),
]


@pytest.mark.parametrize(("mapping", "says"), WRONG)
def test_a_wrong_configuration_is_refused_with_its_place(mapping: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Config, mapping)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: [", "is not valid YAML"),
        (b"checkpoint: x\ncheckpoint: y", "'checkpoint' is given twice"),
        (b"checkpoint: x\nstore: {ttl_s: 1, ttl_s: 2}", "'ttl_s' is given twice"),
        (b"checkpoint: 2020-01-01", "put quotes around"),
        (b"checkpoint: &a [*a]", "'*a' is an alias: write out what it means"),
        (b"? [a]\n: 1", "is not valid YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"[" * 400, "is not valid YAML"),
        (b"", "'checkpoint' is missing"),
        (b"- a", "give keys with values"),
        (b" " * (2 << 20), "give a configuration file"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "worker.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"worker\.yaml") as caught:
        load_config(Config, path)
    assert says in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml' cannot be read"):
        load_config(Config, tmp_path / "nothing.yaml")


@given(
    content=st.binary(max_size=100)
    | st.text(max_size=100).map(lambda t: t.encode(errors="replace"))
)
def test_any_file_is_a_configuration_or_is_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(Config, path)


def test_the_effective_configuration_shows_all_but_secrets() -> None:
    config = parse_config(
        Config,
        {
            "checkpoint": "x",
            "api_token": "hush",
            "store": {"kind": "redis", "url": "redis://me:hush@host:6379/0"},
            "secrets_file": "/run/secrets.yaml",
            "labels": {"zone": "a", "db_password": "hush"},
        },
    )
    shown = effective_config(config)
    assert "hush" not in repr(shown)
    assert shown["api_token"] == shown["labels"]["db_password"] == "***"
    assert shown["secrets_file"] == "/run/secrets.yaml"
    assert shown["labels"]["zone"] == "a"
    assert shown["store"] == {"kind": "redis", "url": "redis://***@host:6379/0", "ttl_s": 3.0}
    assert shown["fallback"] is None
    assert shown["num_blocks"] == 64


def test_a_wrong_value_that_is_secret_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Config, {"checkpoint": "x", "api_token": ["hush"]})
    assert "hush" not in caught.value.message


@pytest.mark.parametrize(
    ("written", "right"), [("2.0e10", "2.0e+10"), ("1e9", "1.0e+9"), ("8e-5", "8.0e-5")]
)
def test_a_number_that_yaml_takes_for_text_is_written_right(
    tmp_path: Path, written: str, right: str
) -> None:
    path = tmp_path / "worker.yaml"
    path.write_text(f"checkpoint: c\nstore: {{ttl_s: {written}}}\n")
    with pytest.raises(
        ConfigError, match=f"'store.ttl_s' is text to YAML: write {re.escape(right)}"
    ):
        load_config(Config, path)
    path.write_text(f"checkpoint: c\nstore: {{ttl_s: {right}}}\n")
    assert load_config(Config, path).store.ttl_s == float(written)
