"""Requests that are made of the page at /openapi.json, good and bad: how a cluster answers."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.deploy.served import serving

ECOSYSTEM = Path(__file__).resolve().parents[2] / "scripts" / "ecosystem"


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_whatever_the_page_allows_and_forbids_is_answered_as_it_says(tmp_path: Path) -> None:
    """No 5xx, no answer later than 5 s, and each is described; two thousand from one seed."""
    clients = runpy.run_path(str(ECOSYSTEM / "clients.py"))
    with serving(tmp_path / "home", "--http-port", "0") as served:
        asking = clients["Asking"](Path(sys.executable), str(served.ready["http"]), tmp_path)
        clients["schemathesis"](asking)
        assert served.process.poll() is None
        assert [line for line in served.said if "ended with code" in line] == []
