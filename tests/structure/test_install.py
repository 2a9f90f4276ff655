"""How the installer tells the builds of torch apart, from what pip prints."""

import os
import runpy
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
torch_build = runpy.run_path(str(ROOT / "scripts" / "torch_build"))


@pytest.mark.parametrize(
    ("line", "is_cuda"),
    [
        ("Processing /wheels/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("Downloading torch-2.13.0%2Bcpu-cp311-cp311-manylinux_x86_64.whl (191.8 MB)", False),
        ("  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (526.6 MB)", True),
        ("  Using cached torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (526.6 MB)", True),
        ("  Downloading torch-2.13.0-cp311-none-macosx_11_0_arm64.whl (73.6 MB)", False),
        ("Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (31 kB)", None),
        ("Collecting torch==2.13.0", None),
    ],
)
def test_a_line_of_pip_says_which_build_it_is(line: str, is_cuda: bool | None) -> None:
    assert torch_build["is_cuda_wheel"](line) is is_cuda


def test_the_scripts_can_be_called() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        if path.is_file():
            assert path.stat().st_mode & stat.S_IXUSR, path
            assert path.read_text().startswith("#!"), path


def test_an_interpreter_that_is_too_old_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    script = tmp_path / "scripts" / "install"
    script.parent.mkdir()
    script.write_text((ROOT / "scripts" / "install").read_text())
    for name in ("pyproject.toml", "constraints.txt", "scripts/torch_build"):
        (tmp_path / name).write_text("")
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(old)}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs Python 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()
