"""The commands by name, and how each kind of failure ends: a sentence and an exit code, never a
traceback. A command's module is imported when it is called."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from penstock.cli.exit_codes import ExitCode, exit_code
from penstock.cli.output import complain, write_json
from penstock.errors import PenstockError, UnreachableError

# Command -> module of penstock.cli that defines it.
COMMANDS = {
    "serve": "serve",
    "demo": "demo",
    "chat": "chat",
    "generate": "generate",
    "status": "status",
    "doctor": "doctor",
    "models": "text",
    "tokenize": "text",
    "detokenize": "text",
    "policy": "policy",
    "explain": "policy_live",
    "simulate": "simulate",
    "bench": "bench",
    "secrets": "secrets",
    "version": "version",
}
HELP = "Serve large language models from prefill and decode workers, and talk to them."
FORWARDS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


class LazyCommands(TyperGroup):
    """Imports a command when it is named: `penstock version` loads no launcher."""

    # `Any` for click's types: typer brings its own copy of click, or uses the installed one.
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"penstock.cli.{COMMANDS[cmd_name]}")
        if isinstance(group := getattr(module, cmd_name), typer.Typer):
            return typer.main.get_command(group)
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        settings = FORWARDS if cmd_name == "bench" else {}
        app.command(cmd_name, context_settings=settings)(told(getattr(module, cmd_name)))
        return typer.main.get_command(app)


app = typer.Typer(cls=LazyCommands, help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """Options of all commands would stand here."""


def told(command: Callable[..., None]) -> Callable[..., None]:
    """Ends a command with a sentence and its exit code. What is not ours is a bug: it shows."""

    @functools.wraps(command)
    def tell(*arguments: Any, **options: Any) -> None:
        from cluster.errors import PenstockError as ClusterError

        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except (PenstockError, ClusterError) as error:
            _tell(error, is_json=bool(options.get("json")))
            code = exit_code(error) if isinstance(error, PenstockError) else ExitCode.FAILURE
            raise typer.Exit(code) from None

    return tell


def _tell(error: Any, *, is_json: bool) -> None:
    hint = ""
    if isinstance(error, UnreachableError):
        hint = "\nNo cluster answers there: start one with 'penstock serve', or give --address."
    complain(error.message + hint)
    if is_json:
        found = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
        write_json({"error": found})


def run(arguments: Sequence[str]) -> None:
    """Ends the process with the command's exit code."""
    app(list(arguments), prog_name="penstock")
