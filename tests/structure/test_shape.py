"""Size is a feature: functions stay short and simple, names say what things are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_P90_LINES = 25
MAX_COMPLEXITY = 10
MAX_ARCHITECTURE_LINES = 150
BANNED_WORDS = {"manager", "handler", "helper", "helpers", "utils", "util", "abstract", "misc"}
BANNED_WORDS |= {"connector", "common", "pod"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


class Shape(NamedTuple):
    lines: int
    complexity: int
    where: str


def functions(module: Any) -> Iterator[Shape]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Shape(lines, complexity(node), f"{module.path}:{node.lineno} {node.name}")


def complexity(function: Function) -> int:
    """McCabe's, without what functions inside it count for themselves."""
    count = 1
    ahead = list(ast.iter_child_nodes(function))
    while ahead:
        node = ahead.pop()
        if not isinstance(node, Function):
            count += isinstance(node, BRANCHES)
            ahead += ast.iter_child_nodes(node)
    return count


def test_functions_are_short_and_simple(
    modules: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = [shape for module in modules for shape in functions(module)]
    lines = [shape.lines for shape in shapes]
    p90 = quantiles(lines, n=10)[8]
    longest = max(shapes)
    files = [len((ROOT / module.path).read_text().splitlines()) for module in modules]
    product = [m for m in modules if m.path.parts[0] not in ("bench", "shipped_model")]
    product_lines = sum(len((ROOT / module.path).read_text().splitlines()) for module in product)
    with capsys.disabled():
        print(
            f"\nshape: {len(modules)} files, {sum(files)} lines, {product_lines} of them the"
            f" product's, median file {median(files):.0f},"
            f" longest {max(files)}; {len(shapes)} functions, median {median(lines):.0f},"
            f" p90 {p90:.0f}, longest {longest.lines} ({longest.where})"
        )
    assert p90 <= MAX_P90_LINES
    assert [shape for shape in shapes if shape.complexity > MAX_COMPLEXITY] == []


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_names_say_what_things_are(modules: list[Any]) -> None:
    wrong = [str(module.path) for module in modules if words(module.path.stem) & BANNED_WORDS]
    wrong += [
        f"{module.path}: {node.name}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and words(node.name) & BANNED_WORDS
    ]
    assert wrong == []


def test_every_module_says_what_it_owns(modules: list[Any]) -> None:
    silent = [str(module.path) for module in modules if not ast.get_docstring(module.tree)]
    assert [path for path in silent if not path.endswith("__init__.py")] == []


def test_the_architecture_page_is_short() -> None:
    page = ROOT / "docs" / "architecture.md"
    if not page.exists():
        pytest.skip("not written yet")
    assert len(page.read_text().splitlines()) <= MAX_ARCHITECTURE_LINES
