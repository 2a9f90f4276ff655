"""Checks whether processes may listen where they would come to, asked of their own configurations
before any of them starts: what they refuse is refused in their words."""

from collections.abc import Sequence
from pathlib import Path

from cluster.addresses import is_loopback
from cluster.authority import Credentials
from cluster.config import parse_config
from cluster.errors import ConfigError
from cluster.secrets import load_secrets
from deploy.placed import StartOrder, process_plan
from deploy.placement import Machine
from deploy.plan import Part
from router.config import RouterConfig
from worker.config import WorkerConfig


def check_ways(orders: Sequence[StartOrder], machines: Sequence[Machine]) -> None:
    """Raises ConfigError. Where the secrets lie on the machines alone, each process says it when
    it starts."""
    secrets_file = Path(orders[0].config["secrets_file"])
    if not secrets_file.exists():
        return
    credentials = Credentials(load_secrets(secrets_file).authority)
    # Wherever they will be: one that others reach stands for all of these.
    machine = min(machines, key=lambda each: is_loopback(each.address)).address
    for order in orders:
        if order.part is Part.PLANNER:  # it listens to its own machine alone
            continue
        config = process_plan(order, Path(), Path(), machine).config
        if order.weights:  # where they will be is for each machine to say
            config = {**config, "checkpoint": order.weights_dir}
        kind: type[RouterConfig | WorkerConfig] = WorkerConfig
        if order.part is Part.ROUTER:
            kind = RouterConfig
        try:
            parse_config(kind, config, source=order.name).check_ways(credentials)
        except ConfigError as error:
            raise ConfigError(f"{order.name} on {machine}: {error.message}") from error
