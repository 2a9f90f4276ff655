"""`python -m decode_worker --config FILE`: one worker, that begins as a decode worker."""

import sys

from cluster.command import run_configured
from decode_worker.config import DecodeWorkerConfig
from worker_roles.lives import serve

if __name__ == "__main__":
    sys.exit(run_configured("decode_worker", __doc__, DecodeWorkerConfig, serve))
