"""Which of our files run between accept and last token of a remote-prefill request, and would
not run without it.

`docs/architecture.md` walks exactly these; how many there are, and how long, is printed.
"""

import asyncio
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import pytest

from tests.exactness.ways import Way, ask, cluster_of

ROOT = Path(__file__).parents[2]
GOAL_FILES, GOAL_LINES = 18, 2_700


class Recorder:
    """Collects all functions called, on every thread made since it was installed."""

    def __init__(self) -> None:
        self.functions: set[CodeType] = set()

    def on_call(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.functions.add(frame.f_code)

    @contextmanager
    def installed(self) -> Iterator[None]:
        threading.setprofile(self.on_call)
        sys.setprofile(self.on_call)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def ours(files: set[str]) -> list[Path]:
    """Shipped files of the project; not the stubs, and not the tests around them."""
    paths = [Path(name) for name in files if name.startswith(f"{ROOT}/")]
    inside = [path.relative_to(ROOT) for path in paths if path.exists()]
    return sorted(p for p in inside if p.parts[0] not in ("tests", "penstock", ".venv"))


def functions_in(path: list[Path], functions: set[CodeType]) -> tuple[int, int]:
    """How many of the functions are in these files, and their lines."""
    inside = [f for f in functions if f.co_filename in {str(ROOT / file) for file in path}]
    return len(inside), sum(len({line for _, _, line in f.co_lines() if line}) for f in inside)


@pytest.mark.slow
async def test_the_walk_through_one_request_names_the_files_that_run(tmp_path: Path) -> None:
    recorder = Recorder()
    way = Way()
    with recorder.installed():
        async with cluster_of("llama", way, tmp_path) as cluster:
            await ask(cluster, list(range(2, 60)), way, 0)  # connections are made
            recorder.functions = idle = set()
            await asyncio.sleep(1.5)  # a heartbeat: what runs anyway is not the request's
            recorder.functions = busy = set()
            await ask(cluster, list(range(60, 130)), way, 1)
            recorder.functions = set()
    path = ours({code.co_filename for code in busy - idle})
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in path}
    print(f"{len(path)} files, {sum(lines.values())} lines (goal {GOAL_FILES}, {GOAL_LINES})")
    for file in path:
        print(f"{lines[file]:6} {file}")
    num_functions, num_lines = functions_in(path, busy - idle)
    print(f"of these, {num_functions} functions with {num_lines} lines run")
    walked = set(
        re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", (ROOT / "docs/architecture.md").read_text())
    )
    assert {str(file) for file in path} <= walked, "docs/architecture.md leaves files out"
    gone = sorted(file for file in walked if not (ROOT / file).exists())
    assert not gone, "docs/architecture.md names files that are gone"
