"""`penstock weights`: what a model's files are, and how they come to this machine."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import ConfigError, WeightsError
from deploy.weights.kept import KeptWeights, kept
from deploy.weights.kept import remove as remove_kept
from deploy.weights.manifest import NAME, manifest_of
from deploy.weights.origin import Weights
from deploy.weights.pulled import pulled
from penstock.cli import options
from penstock.cli.app import told
from penstock.cli.output import say, write, write_json

weights = typer.Typer(
    help="Weights of a model: say what they are, pull them, list and remove those in the cache.",
    add_completion=False,
    no_args_is_help=True,
)


@weights.command()
@told
def digest(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A checkpoint; its list is written there.")
    ],
    json: options.Json = False,
) -> None:
    """Write down what a checkpoint consists of, as DIR/SHA256SUMS, and print the digest of that.

    Put DIR where machines can pull it from, and the digest into the cluster's file.

    Example: penstock weights digest my-model
    """
    try:
        manifest = manifest_of(directory)
        (directory / NAME).write_bytes(manifest.text)
    except OSError as error:
        raise WeightsError(f"{directory} cannot be read and written: {error}.") from error
    say(f"{directory / NAME} names {len(manifest.files)} files; 'sha256sum -c' there checks them.")
    if json:
        write_json({"digest": manifest.digest, "files": dict(manifest.files)})
    else:
        write(f"{manifest.digest}\n")


@weights.command()
@told
def pull(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A path or a URL, as in a cluster's file.")
    ],
    digest: Annotated[
        str, typer.Option("--digest", metavar="SHA256", help="Of its SHA256SUMS; needed.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="To be made. Default: in the user's cache."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Pull the weights of a model onto this machine and print where they are.

    What broke off goes on; what is there already is not pulled again.

    Example: penstock weights pull s3://models/my-model --digest sha256:...
    """
    try:
        wanted = Weights(source=source, digest=digest)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    here = asyncio.run(pulled(wanted, str(to.absolute()) if to else "", say=say))
    if json:
        write_json({"checkpoint": str(here)})
    else:
        write(f"{here}\n")


@weights.command(name="list")
@told
def list_kept(json: options.Json = False) -> None:
    """List the weights in this user's cache, the longest unused first.

    A pull that has no room takes away those that no process of this machine uses, in this order.

    Example: penstock weights list
    """
    found = kept()
    if json:
        write_json(
            [
                {
                    "digest": each.digest,
                    "bytes": each.num_bytes,
                    "used": each.is_used,
                    "whole": each.is_whole,
                    "used_at": each.used_at,
                }
                for each in found
            ]
        )
    elif found:
        write("".join(f"{_line(each)}\n" for each in found))
    else:
        say("None are kept here: 'penstock weights pull' and clusters with 'weights' bring some.")


@weights.command()
@told
def remove(
    digest: Annotated[
        str, typer.Argument(metavar="SHA256", help="As 'penstock weights list' has it.")
    ],
    json: options.Json = False,
) -> None:
    """Remove weights from this user's cache. Those that a process uses stay.

    Example: penstock weights remove sha256:...
    """
    found = next((each for each in kept() if each.digest == digest), None)
    if found is None:
        raise WeightsError(
            f"There is no '{digest[:80]}' in this user's cache: 'penstock weights list' says which"
            " are."
        )
    if not remove_kept(found):
        raise WeightsError(f"{digest} is used, or pulled, by a process of this machine: it stays.")
    if json:
        write_json({"removed": digest, "bytes": found.num_bytes})
    else:
        say(f"{digest} is gone: {found.num_bytes / 1e6:,.0f} MB.")


def _line(each: KeptWeights) -> str:
    days = (time.time() - each.used_at) / 86_400
    when = "in use" if each.is_used else f"last used {days:.1f} days ago"
    begun = "" if each.is_whole else ", not all of it has come"
    return f"{each.digest}  {each.num_bytes / 1e6:,.0f} MB  {when}{begun}"
