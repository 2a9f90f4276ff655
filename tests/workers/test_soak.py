"""Thousands of mixed requests with random cancels leave nothing behind, and no wrong token."""

from pathlib import Path

import pytest

from tests.workers.local_cluster import LocalCluster
from tests.workers.mixed_load import soak


def mixed_cluster(checkpoint: Path, tmp_path: Path) -> LocalCluster:
    return LocalCluster(
        checkpoint,
        tmp_path,
        decode=[{"num_blocks": 40}, {"num_blocks": 64, "block_size": 8}],
        prefill=[{"num_blocks": 64}, {"num_blocks": 32, "block_size": 32}],
        disaggregate="always",
    )


@pytest.mark.prove
@pytest.mark.slow
async def test_hundreds_of_mixed_requests_with_random_cancels(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with mixed_cluster(checkpoint, tmp_path) as cluster:
        await soak(cluster, 300)


@pytest.mark.prove
@pytest.mark.timeout(1800)
async def test_five_thousand_mixed_requests_with_random_cancels(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with mixed_cluster(checkpoint, tmp_path) as cluster:
        await soak(cluster, 5_000)
