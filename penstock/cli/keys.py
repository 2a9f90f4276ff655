"""`penstock keys`: who may call a cluster. Writes the file that routers follow."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any

import typer

from cluster.bounds import check_name
from cluster.errors import ConfigError
from cluster.lock import lock_alone
from penstock.cli import options
from penstock.cli.app import CONTEXT, told
from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail, say, write, write_json, write_table
from router.callers.key_file import (
    ApiKey,
    changed_keys,
    hash_of,
    new_key,
    read_keys,
    without,
)

keys = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings=CONTEXT,
    help="Say who may call a cluster, and how much.",
)
COLUMNS = ["key", "tenant", "class", "requests/min", "tokens/min", "in flight", "created"]

KeysFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="As 'routers.keysFile' of the cluster has it.")
]


@keys.command("add")
@told
def add(
    file: KeysFile,
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="NAME", help="Whose share, and whose cache.")
    ],
    name: Annotated[
        str, typer.Option("--id", metavar="NAME", help="Of the key, in logs. Default: drawn.")
    ] = "",
    service_class: Annotated[
        str,
        typer.Option(
            "--class", metavar="NAME", help="Of the policy, for all its requests. Default: theirs."
        ),
    ] = "",
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="A minute. Default: no bound.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", min=1, help="A minute, of prompts and answers. Default: no bound."
        ),
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option("--in-flight", min=1, help="Requests, at each router. Default: no bound."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Draw a key, and print it: once, for the file holds its hash alone.

    Routers that follow the file take it within two seconds.

    Example: penstock keys add keys.json --tenant acme --requests 60 --tokens 100000
    """
    name = name or f"{tenant[:32]}-{token_hex(4)}"
    for what, said in (("key", name), ("tenant", tenant), ("class", service_class or "any")):
        _check_name(said, what)
    drawn = new_key()
    key = ApiKey(
        id=name,
        tenant=tenant,
        api_key_sha256=hash_of(drawn.encode()).hex(),
        service_class=service_class or None,
        max_requests_per_minute=requests,
        max_tokens_per_minute=tokens,
        max_in_flight=in_flight,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with _held(file):
        changed_keys(file, lambda before: (*before, key))
    if json:
        write_json({"id": key.id, "tenant": tenant, "api_key": drawn})
    else:
        write(f"{drawn}\n")
    say(f"Key '{key.id}' of tenant '{tenant}' is in {file}; it is shown this once.")


@keys.command("list")
@told
def list_keys(file: KeysFile, json: options.Json = False) -> None:
    """Show who has a key, and what he may.

    Example: penstock keys list keys.json
    """
    table = read_keys(file)
    if json:
        write_json([_plain(key) for key in table.keys])
    else:
        write_table(COLUMNS, [_row(key) for key in table.keys])


@keys.command("revoke")
@told
def revoke(
    file: KeysFile,
    key: Annotated[str, typer.Argument(metavar="ID", help="As 'penstock keys list' shows it.")],
    json: options.Json = False,
) -> None:
    """Take a key out: within two seconds no router knows it. Answers in progress go on.

    Example: penstock keys revoke keys.json acme-7f3a9c21
    """
    with _held(file):
        read_keys(file)  # one that is not there has no keys to revoke
        changed_keys(file, lambda before: without(before, key))
    if json:
        write_json({"revoked": key})
    say(f"Key '{key}' is revoked.")


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Of two who change the file one waits for the other."""
    target = file.resolve()
    try:
        descriptor = lock_alone(target.with_name(f".{target.name}.lock"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _check_name(said: str, what: str) -> None:
    try:
        check_name(said, what)
    except ValueError as error:
        fail(str(error), ExitCode.USAGE)


def _plain(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "class": key.service_class,
        "requests_per_minute": key.max_requests_per_minute,
        "tokens_per_minute": key.max_tokens_per_minute,
        "in_flight": key.max_in_flight,
        "created": key.created,
    }


def _row(key: ApiKey) -> list[str]:
    return ["" if value is None else str(value) for value in _plain(key).values()]
