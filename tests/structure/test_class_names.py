"""One class a name: whoever reads it knows which is meant."""

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_a_class_name_stands_in_one_file(modules: list[Any]) -> None:
    where = defaultdict(set)
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                where[node.name].add(str(module.path))
    twins = {name: sorted(files) for name, files in where.items() if len(files) > 1}
    explained = explained_twins()
    assert {name: twins[name] for name in twins.keys() - explained} == {}
    assert explained == twins.keys(), "none is named that is no twin any more"


def explained_twins() -> set[str]:
    """Those of which the page on architecture says why."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    [said] = re.findall(r"Twins: ([^.]*)\.", page)
    return set(re.findall(r"`(\w+)`", said))
