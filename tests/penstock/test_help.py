"""What `--help` tells: every command by its name, every option with its meaning and default."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from penstock import __version__
from penstock.cli.app import COMMANDS, app
from tests.penstock.command_line import Penstock


def commands() -> Iterator[tuple[str, Any]]:
    """Every command, of groups too, by what one types."""
    root: Any = typer.main.get_command(app)
    for name in COMMANDS:
        command = root.get_command(None, name)
        yield name, command
        for inner, each in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", each


ALL = dict(commands())


def test_every_command_and_group_stands_there_by_name(penstock: Penstock) -> None:
    told = penstock("--help").out
    shown = [line.strip("│ ").split(" ")[0] for line in told.splitlines()]
    assert [name for name in COMMANDS if name not in shown] == []
    group = penstock("policy", "--help").out
    assert "penstock policy" in group
    assert "--install-completion" not in group


@pytest.mark.parametrize("name", ALL)
def test_help_is_short_and_long(penstock: Penstock, name: str) -> None:
    words = name.split()
    told = penstock(*words, "--help")
    assert told.code == 0
    assert told.out == penstock(*words, "-h").out


@pytest.mark.parametrize("name", ALL)
def test_every_option_tells_its_meaning_and_default(name: str) -> None:
    options = [each for each in ALL[name].params if each.param_type_name == "option"]
    assert [each.opts for each in options if not each.help] == []
    for option in options:
        is_told = option.is_flag or option.required or option.default not in (None, "", ())
        assert is_told or "Default: " in option.help, option.opts


@pytest.mark.parametrize("name", ALL)
def test_the_list_of_commands_shows_whole_sentences(name: str) -> None:
    summary = ALL[name].help.split("\n\n")[0]
    assert summary.endswith(".")
    assert "\n" not in summary


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in ALL
        if n not in ("policy", "cluster", "planner", "weights", "keys", "policy schema")
    ],
)
def test_json_is_everywhere(name: str) -> None:
    assert any("--json" in each.opts for each in ALL[name].params)


def test_no_flag_looks_as_if_it_took_a_value(penstock: Penstock) -> None:
    [line] = [line for line in penstock("serve", "--help").out.splitlines() if "│ --json" in line]
    assert "<bool>" not in line


def test_the_version_is_an_option_too(penstock: Penstock) -> None:
    assert penstock("--version") == (0, f"penstock {__version__}\n", "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("statsu",), "status"),
        (("polcy", "check"), "policy"),
        (("policy", "chekc"), "check"),
        (("generate", "--maxtokens", "3"), "--max-tokens"),
    ],
)
def test_a_typo_is_told_what_was_meant(
    penstock: Penstock, typed: tuple[str, ...], meant: str
) -> None:
    ended = penstock(*typed)
    assert ended.code == 2
    assert meant in ended.err


def test_a_group_without_a_command_explains_itself(penstock: Penstock) -> None:
    for words in ((), ("policy",)):
        ended = penstock(*words)
        assert ended.code == 2
        assert "Commands" in ended.out + ended.err
