"""`penstock models`, `tokenize` and `detokenize`."""

from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.messages import plain
from penstock.cli.output import read_stdin, write, write_json, write_table
from penstock.cli.way_in import ClientFiles, open_client


def models(
    address: options.Address = None,
    api_key: options.ApiKey = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    json: options.Json = False,
) -> None:
    """List the models that are served, with their limits."""
    with open_client(address, api_key, ClientFiles(ca_file, cert_file, key_file)) as client:
        served = client.models()
    if json:
        write_json(list(map(plain, served)))
        return
    rows = [
        [
            model.name,
            str(model.context_length),
            str(model.vocab_size),
            str(model.limits.max_output_tokens),
            model.model_digest[:12],
        ]
        for model in served
    ]
    write_table(["model", "context", "vocabulary", "max output", "digest"], rows)


def tokenize(
    text: Annotated[str, typer.Argument(help="The text; - reads it from stdin.")],
    address: options.Address = None,
    api_key: options.ApiKey = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    model: options.Model = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="As a chat message, with the template around it.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Print a text's token ids, as the model sees them."""
    text = read_stdin() if text == "-" else text
    with open_client(address, api_key, ClientFiles(ca_file, cert_file, key_file)) as client:
        ids = (
            client.tokenize(messages=[("user", text)], model=model)
            if chat
            else client.tokenize(text, model=model)
        )
    if json:
        write_json({"token_ids": ids, "count": len(ids)})
    else:
        write(" ".join(map(str, ids)) + "\n")


def detokenize(
    token_ids: Annotated[list[int], typer.Argument(help="Token ids.")],
    address: options.Address = None,
    api_key: options.ApiKey = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    model: options.Model = "",
    json: options.Json = False,
) -> None:
    """Print the text of token ids."""
    with open_client(address, api_key, ClientFiles(ca_file, cert_file, key_file)) as client:
        text = client.detokenize(token_ids, model=model)
    if json:
        write_json({"text": text})
    else:
        write(text + "\n")
