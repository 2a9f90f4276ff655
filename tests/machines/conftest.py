"""Machines for tests; where none can be made, each test that needs them is listed by name."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.machines.network import Network, missing, network


@cache
def reason() -> str | None:
    return missing()


@pytest.fixture
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Network]:
    """A network without machines yet."""
    if lacking := reason():
        pytest.skip(f"{lacking} Not run: {request.node.nodeid}")
    with network(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_machines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Network]:
    """The same for all tests of a module, which go on with what those before have made."""
    if lacking := reason():
        pytest.skip(f"{lacking} Not run: {request.node.nodeid}")
    with network(tmp_path_factory.mktemp("machines")) as made:
        yield made
