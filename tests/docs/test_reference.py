"""What the pages quote from the code is what the code says today."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.limits import Limits
from decode_worker.config import DecodeWorkerConfig
from deploy.cluster_file.kind import cluster_schema
from prefill_worker.config import PrefillWorkerConfig
from router.config import RouterConfig
from router.standing import Assumed
from tests.docs.pages import PAGES, ROOT

UNITS = {"seconds", "bytes", "bytes a second", "tokens", "characters", "requests", "texts"}
UNITS |= {"messages", "answers", "strings", "ids", "words", "alternatives", "blocks", "sequences"}
UNITS |= {"threads", "connections", "port", "share"}


@pytest.mark.slow  # and a part of `make check`
def test_the_pages_are_current() -> None:
    command = [sys.executable, "scripts/reference", "--check"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", cluster_schema()["$defs"])
def test_every_section_of_a_clusters_file_has_its_table(name: str) -> None:
    """But for its envelope."""
    page = PAGES["docs/cluster-file.md"]
    assert name == "ClusterMetadata" or f".{name} -->\n| key |" in page


@pytest.mark.parametrize("config", [RouterConfig, PrefillWorkerConfig, DecodeWorkerConfig])
def test_every_key_is_in_a_table_with_its_unit_and_when_to_change_it(config: type) -> None:
    lines = PAGES["docs/configuration.md"].splitlines()
    for key, default in keys_of(config):
        rows = [line for line in lines if line.startswith(f"| `{key}` |")]
        assert rows, f"docs/configuration.md does not tell of '{key}'"
        for row in rows:
            _, _, unit, told, meaning, change, _ = map(str.strip, re.split(r"(?<!\\)\|", row))
            assert meaning, key
            assert change, key
            if isinstance(default, int | float) and not isinstance(default, bool):
                assert unit in UNITS, f"{key}: '{unit}' is no unit"
            if isinstance(default, int | float | str | None):
                assert yaml.safe_load(told.partition("(")[0].strip(" `")) == default, key


def keys_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key with its default; the keys of a section follow it."""
    for field in dataclasses.fields(config):
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default
        yield prefix + field.name, default
        if isinstance(default, Limits | Assumed):
            yield from keys_of(default, f"{prefix}{field.name}.")
