"""The page on other people's clients has what scripts/ecosystem runs, as it ended."""

import runpy
from importlib.metadata import version

import pytest

from tests.docs.pages import PAGES, ROOT

CLIENTS = runpy.run_path(str(ROOT / "scripts" / "ecosystem" / "clients.py"))["CLIENTS"]
PAGE = PAGES["docs/ecosystem.md"]


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_a_client_stands_there_at_the_version_that_is_run(client: object) -> None:
    package, _, pinned = client.requires[0].partition("==")  # type: ignore[attr-defined]
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| {package} |")]
    assert row.split(" | ")[1] == pinned
    assert row.split(" | ")[2] == client.does  # type: ignore[attr-defined]
    assert not row.endswith("| failed |")


def test_schemathesis_is_the_one_that_is_installed_here() -> None:
    assert CLIENTS["schemathesis"].requires == (f"schemathesis=={version('schemathesis')}",)
