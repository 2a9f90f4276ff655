"""Commands, options, targets, modules, files and links that README and docs name exist."""

import importlib.util
import itertools
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from penstock.cli.app import COMMANDS, app
from tests.docs.pages import PAGES, ROOT, blocks, inline_commands, program


def test_what_is_named_exists() -> None:
    shown = [(str(block), command) for block in blocks() for command in block.commands]
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = set(re.findall(r"^  make (\S+)", listed.stdout, re.MULTILINE))
    wrong = [
        f"{page}: {command}: {problem}"
        for page, command in [*shown, *inline_commands()]
        for problem in problems(command, targets)
    ]
    assert wrong == []


def problems(command: str, targets: set[str]) -> Iterator[str]:
    words = command.replace("[", "").replace("]", "").split()
    match program(command):
        case "penstock":
            yield from unknown_options(words[1:])
        case "make":
            named = [word for word in words[1:] if "=" not in word]
            yield from (f"no target {word}" for word in named if word not in targets)
        case "python" if "-m" in words:
            module = words[words.index("-m") + 1]
            if importlib.util.find_spec(module) is None:
                yield f"no module {module}"
    paths = [word for word in words if re.match(r"(tests|examples|proto)/", word)]
    yield from (f"no file {path}" for path in paths if not (ROOT / path).exists())


def unknown_options(words: list[str]) -> Iterator[str]:
    """Of a `penstock` command, however deep."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "get_command") and words:
        name, *words = words
        if (inner := command.get_command(None, name)) is None:
            yield f"no command {name}"
            return
        command = inner
    known = {text for each in command.params for text in [*each.opts, *each.secondary_opts]}
    if not command.context_settings.get("ignore_unknown_options"):  # else it has options of its own
        given = itertools.takewhile(lambda word: word != "--", words)
        options = [word for word in given if re.match("--?[a-z]", word)]
        yield from (f"no option {word}" for word in options if word not in known)


def test_the_commands_that_exist_are_named_somewhere() -> None:
    text = "\n".join(PAGES.values())
    assert [name for name in COMMANDS if f"penstock {name}" not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page])
    here = (ROOT / page).parent
    assert [link for link in links if not (here / link).exists()] == []
