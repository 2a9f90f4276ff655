"""`python -m decode_worker --config FILE`: one worker, that begins as a decode worker."""

import sys

from decode_worker.config import DecodeWorkerConfig
from worker.process import run_worker
from worker_roles.lives import Lives

if __name__ == "__main__":
    sys.exit(run_worker("decode_worker", __doc__, DecodeWorkerConfig, Lives))
