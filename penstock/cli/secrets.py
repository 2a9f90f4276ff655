"""`penstock secrets`: what the processes of a cluster that is started by hand share."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.secrets import create_secrets
from penstock.cli import options
from penstock.cli.output import say, write_json


def secrets(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="It must not exist yet.")],
    json: options.Json = False,
) -> None:
    """Draw the secrets of a new cluster into a file that only its owner may read.

    Every process of the cluster names it as its secrets_file. It holds the authority for TLS, too.

    Example: penstock secrets secrets.yaml
    """
    create_secrets(path)
    if json:
        write_json({"secrets_file": str(path.absolute())})
    say(f"{path} holds new secrets, for its owner alone: every machine of the cluster needs it.")
