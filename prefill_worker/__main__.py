"""`python -m prefill_worker --config FILE`: one prefill worker."""

import sys

from cluster.types import Role
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.worker import PrefillWorker
from worker.parts import build_parts
from worker.process import run_worker


def build(config: PrefillWorkerConfig) -> PrefillWorker:
    """Loads the model and warms it up."""
    return PrefillWorker(config, build_parts(config, Role.PREFILL))


if __name__ == "__main__":
    sys.exit(run_worker("prefill_worker", __doc__, PrefillWorkerConfig, build))
