"""Which of our files run between accept and last token of a remote-prefill request, and would
not run without it.

`docs/architecture.md` names all of them, and declares the spine: those that a newcomer opens, in
order, each called by one before it. How many lie outside, and how long all are, is printed.
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
ARCHITECTURE = ROOT / "docs/architecture.md"
SPINE_FILES, SPINE_LINES = 18, 4_000
# In functions that run for one request; it may only fall (the goal: 3,300). 48 are who asks and
# what he may take (`router/callers/`), 40 tell who scrapes what a request took, 225 are frames:
# ours where gRPC's streams were a library's, they halve what a streamed request costs; 32 call one
# kernel where a layer called ten of torch's; 26 are where a trace begins, if there is one, and the
# moments that its spans are made of; 30 keep what an answer says, for who loses its stream.
RUN_LINES = 4_966
# Of the spine, those that no call but a message reaches, or another thread.
REACHED = {"decode_worker/service.py", "prefill_worker/service.py", "engine/engine.py"}


class Recorder:
    """Collects all functions called, on every thread made since it was installed."""

    def __init__(self) -> None:
        self.functions: set[CodeType] = set()
        self.calls: set[tuple[str, str]] = set()  # from which file into which

    def on_call(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.functions.add(frame.f_code)
            if frame.f_back is not None:
                self.calls.add((frame.f_back.f_code.co_filename, frame.f_code.co_filename))

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


def spine() -> list[str]:
    """As the page declares it."""
    _, _, section = ARCHITECTURE.read_text().partition("## The spine\n")
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    return [file for row in rows for file in re.findall(r"`([a-z_/]+\.py)`", row)]


@pytest.mark.slow
async def test_one_request_runs_through_the_files_that_the_page_names(tmp_path: Path) -> None:
    recorder = Recorder()
    way = Way()
    with recorder.installed():
        async with cluster_of("llama", way, tmp_path) as cluster:
            await ask(cluster, list(range(2, 60)), way, 0)  # connections are made
            recorder.functions = idle = set()
            await asyncio.sleep(1.5)  # a heartbeat: what runs anyway is not the request's
            runs: list[set[CodeType]] = []
            for number in range(3):  # what runs now and then is no request's: not in each
                recorder.functions, recorder.calls = busy, calls = set(), set()
                await ask(cluster, list(range(60 + number, 130 + number)), way, 1 + number)
                runs.append(busy)
            recorder.functions, recorder.calls = set(), set()
    busy = set.intersection(*runs)
    path = ours({code.co_filename for code in busy - idle})
    lines = {str(file): len((ROOT / file).read_text().splitlines()) for file in path}
    _, num_run = functions_in(path, busy - idle)
    check_spine(lines, {(_named(caller), _named(called)) for caller, called in calls})
    print(f"{len(path)} files, {sum(lines.values())} lines, of which {num_run} run in functions")
    for file in lines.keys() - set(spine()):
        print(f"{lines[file]:6} beside the spine: {file}")
    assert num_run <= RUN_LINES
    walked = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", ARCHITECTURE.read_text()))
    assert lines.keys() <= walked, "docs/architecture.md leaves files out"
    gone = sorted(file for file in walked if not (ROOT / file).exists())
    assert not gone, "docs/architecture.md names files that are gone"


def check_spine(lines: dict[str, int], calls: set[tuple[str, str]]) -> None:
    files = spine()
    num_lines = sum(lines[file] for file in files)
    print(f"the spine: {len(files)} files, {num_lines} lines")
    for number, file in enumerate(files[1:], start=1):
        callers = [before for before in files[:number] if (before, file) in calls]
        assert callers or file in REACHED, f"nothing of the spine before it calls {file}"
    assert len(files) <= SPINE_FILES
    assert num_lines <= SPINE_LINES


def _named(file: str) -> str:
    return file.removeprefix(f"{ROOT}/")
