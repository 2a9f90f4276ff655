"""Fixtures of the router's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.checkpoint import write_checkpoint
from tests.router.cluster_of_fakes import Cluster


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
async def cluster(checkpoint: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A router without workers."""
    async with Cluster(checkpoint, tmp_path, drain_s=5.0) as cluster:
        yield cluster
