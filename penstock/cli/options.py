"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
SecretsFile = Annotated[
    Path | None,
    typer.Option("--secrets-file", help="Of the cluster, when it runs elsewhere."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Model = Annotated[str, typer.Option("--model", help="A model's name, if several are served.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", help="Seconds for the whole request.", min=0)
]

MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Length limit.")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="0 is all.")]
TopP = Annotated[float | None, typer.Option("--top-p")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed, the same answer.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="A stop string; may be repeated.")]

ServiceClass = Annotated[
    str, typer.Option("--class", metavar="NAME", help="A service class of the routing policy.")
]

ModelDir = Annotated[
    Path | None,
    typer.Option("--model-dir", help="A checkpoint directory. Default: the shipped model."),
]
