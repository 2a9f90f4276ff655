"""One planner put together from its configuration: a lease in the store, a Ray, the routers."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster.config import effective_config
from cluster.redis_store import RedisStore
from cluster.sealed_store import SealedStore
from cluster.secrets import Secrets, load_secrets
from cluster.store import prefix_of
from deploy.planner.config import PlannerConfig
from deploy.planner.lease import Lease
from deploy.planner.loop import PlannerLoop
from deploy.planner.on_ray import OnRay
from deploy.planner.record import LEASE_KEY
from deploy.planner.routers import RouterConnections

logger = logging.getLogger(__name__)


def tell_config(config: PlannerConfig) -> None:
    """Tells what it plans for; what it tells each worker is long."""
    pools = [f"{pool.name} ({pool.role}) {pool.least} to {pool.most}" for pool in config.pools]
    said = f"{', '.join(pools)}; a look every {config.settings.interval_s:g} s"
    logger.info("plans for '%s': %s", config.cluster, said)
    logger.debug("configuration: %s", effective_config(config))


def open_store(store: str, cluster: str, secrets: Secrets) -> SealedStore:
    """Opens the store where planners of a cluster agree who decides. Connects when first used."""
    redis = RedisStore(store, prefix=prefix_of(cluster), password=secrets.store_password)
    return SealedStore(redis, secrets.cluster_token)


@asynccontextmanager
async def planning(config: PlannerConfig, *, name: str) -> AsyncIterator[PlannerLoop]:
    """Raises StartupError where no Ray lets it in."""
    from deploy.ray_door import connected  # it loads Ray

    secrets = load_secrets(config.secrets_file)
    store = open_store(config.store, config.cluster, secrets)
    try:
        with connected(config.ray) as ray:
            async with RouterConnections(secrets) as routers:
                yield PlannerLoop(
                    name=name,
                    pools=config.pools,
                    settings=config.settings,
                    lease=Lease(store, LEASE_KEY, name),
                    store=store,
                    machines=OnRay(ray, config.cluster),
                    routers=routers,
                )
    finally:
        await store.close()
