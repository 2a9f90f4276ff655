"""Commands as a shell finds them where Penstock is installed."""

import sys
from pathlib import Path


def make_shims(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, command in {"python": "", "penstock": "-m penstock"}.items():
        (directory / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        (directory / name).chmod(0o755)
