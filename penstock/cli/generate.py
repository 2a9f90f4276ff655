"""`penstock generate`: one answer."""

from typing import Annotated, Any

import typer

from penstock import Stream
from penstock.cli import options
from penstock.cli.figures import Stopwatch, as_json, summary
from penstock.cli.output import read_stdin, say, write, write_json
from penstock.cli.way_in import ClientFiles, open_client


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.")],
    address: options.Address = None,
    api_key: options.ApiKey = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    model: options.Model = "",
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="As a chat message, or as text to continue.")
    ] = True,
    system: Annotated[str, typer.Option("--system", help="A system message. Default: none.")] = "",
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    service_class: options.ServiceClass = "",
    session: Annotated[
        str,
        typer.Option(
            "--session", metavar="KEY", help="Requests with one key share a prefix. Default: none."
        ),
    ] = "",
    timeout: options.Timeout = None,
    json: options.Json = False,
) -> None:
    """Print one answer.

    Example: penstock generate "What does len do?" --max-tokens 40
    """
    text = read_stdin() if prompt == "-" else prompt
    sampling = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
        "service_class": service_class or None,
        "session_key": session or None,
        "timeout": timeout,
    }
    given: dict[str, Any] = {key: value for key, value in sampling.items() if value is not None}
    with open_client(address, api_key, ClientFiles(ca_file, cert_file, key_file)) as client:
        if chat:
            messages = [("system", system)] if system else []
            stream = client.generate(messages=[*messages, ("user", text)], **given)
        else:
            stream = client.generate(text, **given)
        _show(stream, json)


def _show(stream: Stream, json: bool) -> None:
    watch = Stopwatch()
    with stream:
        for chunk in stream:
            watch.arrived(chunk)
            if not json and chunk.choice == 0:
                write(chunk.text)
        answer = stream.result()
    if json:
        write_json(as_json(answer, watch))
    else:
        write("\n")
        say(summary(answer, watch))
