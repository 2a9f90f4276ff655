"""The weights that a cluster's file has pulled, for commands that wait for them."""

import asyncio
from pathlib import Path

from deploy.cluster_file.document import ClusterSpec
from deploy.weights.pulled import pulled
from penstock.cli.output import say


def weights_of(spec: ClusterSpec, folder: Path = Path(), *, described: bool = False) -> Path | None:
    """Finds where the weights are on this machine now; None where the file has none pulled.
    `folder`: where relative paths begin; `described`: only what says what they are. Raises
    WeightsError."""
    if spec.weights is None:
        return None
    directory = str((folder / spec.checkpoint).absolute()) if spec.checkpoint else ""
    return asyncio.run(pulled(spec.weights, directory, say=say, is_described=described))
