"""The configuration of one planner process; `penstock up` writes it."""

from dataclasses import dataclass, field
from pathlib import Path

from cluster.bounds import check_name
from cluster.config import check_range
from cluster.errors import ConfigError
from cluster.log import LogSettings
from deploy.planner.roster import PlannedPool
from deploy.planner.settings import PlannerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerConfig(LogSettings):
    cluster: str  # its name
    secrets_file: Path  # of the cluster, mode 0600
    store: str  # the URL of its Redis: who holds the lease there decides
    pools: tuple[PlannedPool, ...]  # and between which bounds each stays
    settings: PlannerSettings = field(default_factory=PlannerSettings)
    ray: str | None = None  # HOST:PORT of its head; null: RAY_ADDRESS, else this machine's
    address: str = "127.0.0.1:0"  # where its health is asked for; port 0: any
    drain_s: float = 5.0  # it ends at once: nothing waits for it

    def __post_init__(self) -> None:
        check_name(self.cluster, "cluster")
        check_range(self, "drain_s", at_least=0)
        if "://" not in self.store:
            raise ConfigError(
                f"'store' is '{self.store}': a planner needs the Redis that the cluster shares,"
                " redis://HOST:PORT/DB."
            )
        if not self.pools:
            raise ConfigError("'pools' is empty: there is nothing to plan.")
