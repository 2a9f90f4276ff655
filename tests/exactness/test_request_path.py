"""Which of our files run between accept and last token of a remote-prefill request.

`docs/architecture.md` walks exactly these; how many there are, and how long, is printed.
"""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.exactness.test_cluster import Way, ask, cluster_of

ROOT = Path(__file__).parents[2]
GOAL_FILES, GOAL_LINES = 18, 2_700


class Recorder:
    """Collects the files of all functions called while it is on, on every thread made since."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.is_on = False

    def on_call(self, frame: FrameType, event: str, _: object) -> None:
        if self.is_on and event == "call":
            self.files.add(frame.f_code.co_filename)

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


@pytest.mark.slow
async def test_the_walk_through_one_request_names_the_files_that_run(tmp_path: Path) -> None:
    recorder = Recorder()
    way = Way()
    with recorder.installed():
        async with cluster_of("llama", way, tmp_path) as cluster:
            await ask(cluster, list(range(2, 60)), way, 0)  # connections are made
            recorder.is_on = True
            await ask(cluster, list(range(60, 130)), way, 1)
            recorder.is_on = False
    path = ours(recorder.files)
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in path}
    print(f"{len(path)} files, {sum(lines.values())} lines (goal {GOAL_FILES}, {GOAL_LINES})")
    for file in path:
        print(f"{lines[file]:6} {file}")
    walked = set(
        re.findall(r"`([a-z_]+/[a-z_]+\.py)`", (ROOT / "docs/architecture.md").read_text())
    )
    assert {str(file) for file in path} <= walked, "docs/architecture.md leaves files out"
