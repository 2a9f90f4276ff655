"""In `cluster/` lies what several kinds of processes agree on; the rest lies with its user."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Every process that serves a role runs all of these.
WORKER = ("worker", "prefill_worker", "decode_worker", "worker_roles", "engine", "kv_transfer")
SIDES = dict.fromkeys(WORKER, "worker")
SIDES |= {name: name for name in ("router", "deploy", "penstock")}


def test_what_is_shared_is_used_by_two_sides(modules: list[Any]) -> None:
    importers: dict[str, set[str]] = {}
    for module in modules:
        for name in module.imports:
            importers.setdefault(name, set()).add(module.name)

    def sides(name: str, seen: frozenset[str]) -> set[str]:
        """By way of others in `cluster/`, too."""
        found: set[str] = set()
        for importer in importers.get(name, ()):
            house = importer.partition(".")[0]
            if house != "cluster":
                found |= {SIDES[house]} if house in SIDES else set()
            elif importer not in seen:
                found |= sides(importer, seen | {importer})
        return found

    shared = {module.name for module in modules if module.name.startswith("cluster.")}
    packages = {name for name in shared if (ROOT / name.replace(".", "/")).is_dir()}
    one_sided = {
        f"{name.replace('.', '/')}.py"
        for name in shared - packages
        if len(sides(name, frozenset((name,)))) < 2
    }
    assert one_sided == explained()


def explained() -> set[str]:
    """Those of which the page on architecture says why."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    [said] = re.findall(r"One-sided: ([^;]*);", page)
    return set(re.findall(r"`([\w/.]+)`", said))
