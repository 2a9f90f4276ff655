"""A launcher of stand-ins as a process of its own, so that it can be stopped, starved of files
and ended: says what its cluster says, a line each."""

import asyncio
import signal
import sys
from pathlib import Path

from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan, Part

FAKE = (sys.executable, str(Path(__file__).with_name("fake_process.py")))


async def main(folder: Path, frozen_s: float) -> None:
    journal = {"journal": str(folder / "journal")}
    plan = ClusterPlan(
        checkpoint=folder, commands=dict.fromkeys(Part, FAKE), router=journal, worker=journal
    )
    supervision = Supervision(ready_s=60, frozen_s=frozen_s, first_backoff_s=0.01, last_backoff_s=1)
    cluster = LocalCluster(
        plan,
        supervision=supervision,
        say=lambda line: print(line, flush=True),
        run_dir_parent=folder,
    )
    drain = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drain.set)
    async with cluster:
        print("supervising", flush=True)
        await cluster.supervise(until=drain.wait())


asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
