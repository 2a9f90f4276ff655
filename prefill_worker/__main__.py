"""`python -m prefill_worker --config FILE`: one worker, that begins as a prefill worker."""

import sys

from prefill_worker.config import PrefillWorkerConfig
from worker.process import run_worker
from worker_roles.lives import Lives

if __name__ == "__main__":
    sys.exit(run_worker("prefill_worker", __doc__, PrefillWorkerConfig, Lives))
