"""The source tree as data, for the tests of its structure."""

import ast
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = "penstock.v1"
WORKERS = ("worker", "prefill_worker", "decode_worker", "worker_roles")
FOLDERS = ("penstock", "cluster", "engine", "kv_transfer", "router", *WORKERS)
FOLDERS += ("simulator", "deploy", "shipped_model", "bench")


@dataclass(frozen=True)
class Module:
    """One of our files; the generated stubs are none."""

    path: Path  # from the root of the project

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse((ROOT / self.path).read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")

    @cached_property
    def imports(self) -> frozenset[str]:
        """Dotted names of what is imported, anywhere in the file."""
        names: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
                several = node.module in (*FOLDERS, "google")  # their modules count, too
                if several or node.module.startswith("tests."):
                    names.update(f"{node.module}.{alias.name}" for alias in node.names)
        return frozenset(names)


def house(name: str) -> str:
    """The unit that arrows are drawn between: a folder, or a part of `penstock`."""
    if name == "penstock.__main__":
        return "penstock.cli"
    if name in ("prefill_worker.__main__", "decode_worker.__main__"):
        return "worker_roles"
    for part in (STUBS, "penstock.cli"):
        if name == part or name.startswith(part + "."):
            return part
    return name.partition(".")[0]


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [Path(name) for name in listed.stdout.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    found = [
        Module(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    return [module for module in found if house(module.name) != STUBS]


@pytest.fixture(scope="session")
def files() -> list[Path]:
    return tracked_files()


@pytest.fixture(scope="session")
def tests(files: list[Path]) -> list[Module]:
    """Those, and what they need."""
    return [Module(path) for path in files if path.suffix == ".py" and path.parts[0] == "tests"]


@pytest.fixture(scope="session")
def arrows(modules: list[Module]) -> dict[tuple[str, str], set[str]]:
    """(importing house, imported house) -> the imports that draw the arrow."""
    drawn: dict[tuple[str, str], set[str]] = {}
    for module in modules:
        for name in module.imports:
            ends = house(module.name), house(name)
            if ends[0] != ends[1] and name.partition(".")[0] in FOLDERS:
                drawn.setdefault(ends, set()).add(f"{module.path} imports {name}")
    return drawn
