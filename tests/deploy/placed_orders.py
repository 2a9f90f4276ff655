"""Orders for stand-ins of processes, and how quickly these are given up."""

import sys
from pathlib import Path
from typing import Any

from cluster.secrets import create_secrets
from deploy.launcher import Supervision
from deploy.placed import StartOrder
from deploy.plan import Part

FAKE = (sys.executable, str(Path(__file__).with_name("fake_process.py")))
QUICK = Supervision(ready_s=20, frozen_s=0.4, stop_s=0.5, first_backoff_s=0.01)
MACHINE = "127.0.0.2"


def order_of(folder: Path, name: str = "decode-0", **config: Any) -> StartOrder:
    if not (secrets_file := folder / "secrets.yaml").exists():
        create_secrets(secrets_file)
    said = {"secrets_file": str(secrets_file), "journal": str(folder / "journal"), "drain_s": 0.5}
    return StartOrder(
        cluster="lab",
        name=name,
        part=Part.DECODE,
        config={"address": "127.0.0.1:0", "worker_id": name, **said, **config},
        command=FAKE,
    )
