"""Builds of Penstock that differ in their release and their wire version, side by side, and the
link that says which of them is installed."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "cluster", "decode_worker", "deploy", "engine", "kv_transfer", "shipped_model", "penstock",
    "prefill_worker", "router", "simulator", "worker", "worker_roles",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Builds:
    folder: Path

    @property
    def installed(self) -> Path:
        """Where Python finds whichever it is."""
        return self.folder / "installed"

    def make(self, name: str, *, raised: int = 0) -> None:
        """`raised`: by how much its wire version is above this one's."""
        build = self.folder / name
        for package in PACKAGES:
            shutil.copytree(ROOT / package, build / package, ignore=_CACHES)
        _edit(build / "penstock/__init__.py", r'(__version__ = )".*"', rf'\1"{name}"')
        _edit(build / "cluster/wire_version.py", r"(WIRE_VERSION = \d+)", rf"\1 + {raised}")

    def install(self, name: str) -> None:
        fresh = self.folder / "link"
        fresh.symlink_to(self.folder / name)
        fresh.replace(self.installed)


_CACHES = shutil.ignore_patterns("__pycache__")


def _edit(file: Path, pattern: str, replacement: str) -> None:
    text, num = re.subn(pattern, replacement, file.read_text(), count=1)
    assert num == 1, file
    file.write_text(text)
