"""The commands by name, and how each kind of failure ends: a sentence and an exit code, never a
traceback. A command's module is imported when it is called."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.errors import PenstockError as ClusterError
from penstock import __version__
from penstock.cli.exit_codes import CommandError, ExitCode, exit_code
from penstock.cli.output import discard_output, tell_error, write
from penstock.errors import PenstockError, UnreachableError

# Command -> module of penstock.cli that defines it.
COMMANDS = {
    "serve": "serve",
    "up": "up",
    "down": "up",
    "demo": "demo",
    "chat": "chat",
    "generate": "generate",
    "status": "status",
    "top": "top.command",
    "doctor": "doctor",
    "logs": "logs",
    "bundle": "bundle",
    "stop": "stop",
    "drain": "drain",
    "undrain": "drain",
    "flip": "drain",
    "models": "text",
    "tokenize": "text",
    "detokenize": "text",
    "cluster": "cluster",
    "policy": "policy",
    "explain": "policy_live",
    "simulate": "simulate",
    "plan": "plan",
    "planner": "planner",
    "bench": "bench",
    "weights": "weights",
    "secrets": "secrets",
    "keys": "keys",
    "version": "version",
}
HELP = "Serve large language models from prefill and decode workers, and talk to them."
NO_CLUSTER = "\nNo cluster answers there: start one with 'penstock serve', or give --address."
CONTEXT = {"help_option_names": ["--help", "-h"]}  # of all commands


class LazyCommands(TyperGroup):
    """Imports a command when it is named: `penstock version` loads no launcher."""

    # `Any` for click's types: typer brings its own copy of click, or uses the installed one.
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.commands: Any = dict.fromkeys(COMMANDS)  # what a mistyped name is compared with

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"penstock.cli.{COMMANDS[cmd_name]}")
        found = getattr(module, cmd_name)
        command: Any = typer.main.get_command(
            found if isinstance(found, typer.Typer) else _alone(cmd_name, found)
        )
        command.name = cmd_name
        return _without_types_of_flags(command)


def _alone(name: str, command: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(told(command))
    return app


def _without_types_of_flags(command: Any) -> Any:
    """Help must not look as if a flag took a value."""
    for parameter in command.params:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    for each in getattr(command, "commands", {}).values():
        _without_types_of_flags(each)
    return command


app = typer.Typer(
    cls=LazyCommands,
    help=HELP,
    context_settings=CONTEXT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        write(f"penstock {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show Penstock's version; `penstock version` shows all parts'.",
        ),
    ] = False,
) -> None:
    """Options of all commands stand here."""


def told(command: Callable[..., None]) -> Callable[..., None]:
    """Ends a command with a sentence and its exit code. What is not ours is a bug: it shows."""

    @functools.wraps(command)
    def tell(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            discard_output()
            raise typer.Exit(ExitCode.UNREAD) from None
        except (CommandError, PenstockError, ClusterError) as error:
            hint = NO_CLUSTER if isinstance(error, UnreachableError) else ""
            tell_error(error, json=bool(options.get("json")), hint=hint)
            raise typer.Exit(exit_code(error)) from None

    return tell


def run(arguments: Sequence[str]) -> None:
    """Ends the process with the command's exit code."""
    app(list(arguments), prog_name="penstock")
