"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from penstock.api_key import VARIABLE
from penstock.cli.local import ADDRESS_VARIABLE

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        metavar="HOST:PORT",
        help=f"The cluster. Default: ${ADDRESS_VARIABLE}, else the one that runs here.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help=f"Who calls. Default: ${VARIABLE}, which others of this machine do not see.",
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        help="Who signed the cluster's certificate. Default: of the one that runs here, else the"
        " system's roots.",
    ),
]
CertFile = Annotated[
    Path | None,
    typer.Option(
        "--cert-file", metavar="FILE", help="To show, to a cluster that asks. Default: none."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="Of the --cert-file. Default: none."),
]
SecretsFile = Annotated[
    Path | None,
    typer.Option(
        "--secrets-file",
        help="The cluster's, where it runs elsewhere. Default: of the one that runs here.",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="NAME", help="That is, or was, on Ray. Default: the one found."
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="HOST:PORT",
        help="Of Ray's head. Default: $RAY_ADDRESS, else the Ray that runs on this machine.",
    ),
]
KnownRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="HOST:PORT",
        help="Of Ray's head. Default: $RAY_ADDRESS, else that of the cluster's 'penstock up' here,"
        " else the Ray that runs on this machine.",
    ),
]
LogDir = Annotated[
    Path | None,
    typer.Option(
        "--log-dir",
        metavar="DIR",
        help="Of a cluster that was served with it. Default: the user's state directory.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME", help="A model's name. Default: the one that is served."
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", help="Seconds for the whole request. Default: the router's limit.", min=0
    ),
]

MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", help="Length limit. Default: what the context has room for."),
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", help="0 is greedy. Default: the model's.")
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", help="Draw from so many tokens; 0 is all. Default: the model's."),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", help="Draw from so much probability. Default: the model's."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="The same seed, the same answer. Default: a random one."),
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="A stop string; repeatable. Default: none.")
]

ServiceClass = Annotated[
    str,
    typer.Option(
        "--class", metavar="NAME", help="A service class of the routing policy. Default: its first."
    ),
]

ModelDir = Annotated[
    Path | None,
    typer.Option("--model-dir", help="A checkpoint directory. Default: the shipped model."),
]
