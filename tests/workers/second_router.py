"""A second router beside that of a cluster in this loop, over the same store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

from tests.router.cluster_of_fakes import Cluster
from tests.workers.local_cluster import LocalCluster


@asynccontextmanager
async def second_router(cluster: LocalCluster, **settings: Any) -> AsyncIterator[Cluster]:
    store = cluster.router.store
    with patch("router.router._open_store", lambda config, secrets: store):
        second = Cluster(cluster.checkpoint, cluster.directory, **settings)
    async with second:
        names = {running.name for running in cluster.workers}

        def all_serve() -> bool:
            snapshot = second.router.pool.snapshot(second.router.clock())
            return names <= {load.worker for load in snapshot.loads}

        await second.until(all_serve)
        yield second
