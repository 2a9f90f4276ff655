"""`python -m prefill_worker --config FILE`: one worker, that begins as a prefill worker."""

import sys

from cluster.command import run_configured
from prefill_worker.config import PrefillWorkerConfig
from worker_roles.lives import serve

if __name__ == "__main__":
    sys.exit(run_configured("prefill_worker", __doc__, PrefillWorkerConfig, serve))
