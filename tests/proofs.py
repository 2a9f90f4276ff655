"""A pytest plugin that notes which tests passed in a file, and leaves those out the next time."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--proofs", required=True, help="file of the tests that passed")


class _Proofs:
    def __init__(self, record: Path) -> None:
        self._record = record
        self._passed = set(record.read_text().splitlines() if record.exists() else ())
        self._failed_phases: set[str] = set()

    @pytest.hookimpl(trylast=True)  # after marks have deselected
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        done = [item for item in items if item.nodeid in self._passed]
        items[:] = [item for item in items if item.nodeid not in self._passed]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._failed_phases.add(report.nodeid)
        if report.when == "teardown" and report.nodeid not in self._failed_phases:
            with self._record.open("a") as record:
                record.write(report.nodeid + "\n")


class _Reader(_Proofs):
    """In a process of xdist's, whose results its parent writes down."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        pass


def pytest_configure(config: pytest.Config) -> None:
    kind = _Reader if hasattr(config, "workerinput") else _Proofs
    config.pluginmanager.register(kind(Path(config.getoption("--proofs"))))
