"""What the pages quote from the code is what the code says today."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from decode_worker.config import DecodeWorkerConfig
from deploy.cluster_file.kind import cluster_schema
from prefill_worker.config import PrefillWorkerConfig
from router.config import RouterConfig
from tests.docs.pages import PAGES, ROOT


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
def test_every_key_is_in_a_table_with_its_meaning(config: type) -> None:
    lines = PAGES["docs/operations.md"].splitlines()
    for field in dataclasses.fields(config):
        rows = [line for line in lines if line.startswith(f"| `{field.name}` |")]
        assert rows, f"docs/operations.md does not tell of '{field.name}'"
        assert all(line.split("|")[4].strip() for line in rows)
        if isinstance(field.default, int | float | str | None):
            default = rows[0].split("|")[3].partition("(")[0].strip(" `")
            assert yaml.safe_load(default) == field.default, field.name
