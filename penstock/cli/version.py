"""`penstock version`: what is installed here. Imports none of it."""

import platform
from importlib import metadata

from penstock import __version__
from penstock.cli import options
from penstock.cli.output import write, write_json

PARTS = ("grpcio", "protobuf", "torch", "tokenizers", "uvloop", "redis")


def version(json: options.Json = False) -> None:
    """Show the versions of Penstock and of what it stands on."""
    found = {"penstock": __version__, "python": platform.python_version()}
    for part in PARTS:
        try:
            found[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            found[part] = ""
    if json:
        write_json(found)
    else:
        write("".join(f"{name} {number or '(absent)'}\n" for name, number in found.items()))
