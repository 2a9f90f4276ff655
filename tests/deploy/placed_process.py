"""One placed stand-in as a process of its own, so that it can be killed as Ray's actors are."""

import sys
import threading
from pathlib import Path

from deploy.placed import PlacedSupervisor, StartOrder

folder = Path(sys.argv[1])
order = StartOrder.from_json((folder / "order.json").read_text())
placed = PlacedSupervisor(order, machine="127.0.0.2", directory="lab", run_dir_parent=folder)
while not (state := placed.state()).address:
    threading.Event().wait(0.02)
print(state.pid, flush=True)
if sys.argv[2:]:
    placed.follow(int(sys.argv[2]))
threading.Event().wait()
