"""What all tests of `penstock top` want."""

import pytest

from penstock.cli.top import watch


@pytest.fixture(autouse=True)
def _nobody_is_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_TIMEOUT_S", 60.0)
