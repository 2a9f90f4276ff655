"""Triton's kernels where there is no GPU: by its interpreter, in a process of their own, because a
process that has imported Triton has chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).with_name("test_triton_kernels.py")
ROOT = KERNELS.parents[2]


def run_interpreted(chosen: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", chosen]
    done = subprocess.run(
        [*command, str(KERNELS)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 16 s of a core, which may have to be shared
def test_the_kernels_are_right() -> None:
    run_interpreted("not prove")


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_they_are_right_over_the_whole_grid() -> None:
    run_interpreted("prove")
