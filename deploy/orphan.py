"""A process that may outlive whoever started it: found again by a note of its pid and of when it
began, and ended. A pid alone may be somebody else's by now."""

import contextlib
import os
import select
import signal
from pathlib import Path

END_S = 5.0  # from SIGKILL until the kernel has taken it away


def note_process(note: Path, pid: int) -> None:
    note.write_text(f"{pid} {_began(pid)}")


def end_orphan(note: Path) -> bool:
    """Kills the process of a note, if it is still that one; whether it was. Waits for its end:
    what it holds is free then."""
    with contextlib.suppress(OSError, ValueError):
        pid, began = note.read_text().split()
        process = os.pidfd_open(int(pid))
        try:
            if _began(int(pid)) != began:
                return False
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], END_S)
            return True
        finally:
            os.close(process)
    return False


def _began(pid: int) -> str:
    """Gives its start in ticks since the machine booted. Raises OSError where it is gone."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return stat.rpartition(")")[2].split()[19]
