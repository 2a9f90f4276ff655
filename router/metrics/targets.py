"""Tells Prometheus where the workers are scraped, who come and go on ports that nobody chose: as
its discovery by HTTP wants it (`http_sd_configs`)."""

import json
from collections.abc import Iterable
from typing import Final

from cluster.types import Member

CONTENT_TYPE: Final = "application/json"


def targets(members: Iterable[Member]) -> bytes:
    """Names each worker that is scraped, with labels for all that it tells."""
    found = [
        {
            "targets": [member.metrics],
            "labels": {"worker": member.worker.worker_id, "role": str(member.role)},
        }
        for member in members
        if member.metrics
    ]
    return json.dumps(found).encode()
