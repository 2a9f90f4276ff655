"""`penstock chat`: a conversation. Ctrl-C cancels the answer in progress, or the line; a second
one ends the chat. Without a terminal each line of stdin is a turn."""

import sys
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from penstock import Client, PenstockError
from penstock.cli import options
from penstock.cli.exit_codes import ExitCode, exit_code
from penstock.cli.figures import Stopwatch, as_json, summary
from penstock.cli.output import say, stdin_lines, tell_error, write, write_json
from penstock.cli.way_in import ClientFiles, open_client

HELP = "/new starts anew, /quit (or Ctrl-D) ends; Ctrl-C cancels an answer."
PROMPT = "> "


class Conversation:
    """The turns so far, and the client to ask for the next."""

    def __init__(self, client: Client, sampling: dict[str, Any], *, system: str, json: bool):
        self._client = client
        self._sampling = sampling
        self._json = json
        self._opening = [("system", system)] if system else []
        self.restart()

    def restart(self) -> None:
        self._messages = list(self._opening)
        self._session_key = uuid.uuid4().hex

    def ask(self, text: str) -> ExitCode:
        """One turn; a failed or cancelled one leaves no trace in the conversation."""
        try:
            answer = self._stream([*self._messages, ("user", text)])
        except KeyboardInterrupt:
            say("\n(cancelled)")
            return ExitCode.INTERRUPTED
        except PenstockError as error:
            tell_error(error, json=self._json)
            return exit_code(error)
        self._messages += [("user", text), ("assistant", answer)]
        return ExitCode.OK

    def _stream(self, messages: list[tuple[str, str]]) -> str:
        watch = Stopwatch()
        options = {"session_key": self._session_key, **self._sampling}
        with self._client.generate(messages=messages, **options) as stream:
            for chunk in stream:
                watch.arrived(chunk)
                if not self._json:
                    write(chunk.text)
            answer = stream.result()
        if self._json:
            write_json(as_json(answer, watch))
        else:
            write("\n")
            say(summary(answer, watch))
        return answer.text


def chat(
    address: options.Address = None,
    api_key: options.ApiKey = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    model: options.Model = "",
    system: Annotated[str, typer.Option("--system", help="A system message. Default: none.")] = "",
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    service_class: options.ServiceClass = "",
    json: options.Json = False,
) -> None:
    """Talk with the model.

    Example: echo "What does len do?" | penstock chat
    """
    sampling = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "service_class": service_class or None,
    }
    given = {key: value for key, value in sampling.items() if value is not None}
    with open_client(address, api_key, ClientFiles(ca_file, cert_file, key_file)) as client:
        served = client.model(model)  # a wrong address or model shows before the first question
        is_terminal = sys.stdin is not None and sys.stdin.isatty()
        if is_terminal:
            say(f"{served.name} at {client.address}. {HELP}")
        conversation = Conversation(client, given, system=system, json=json)
        code = _converse(conversation, _typed_lines() if is_terminal else stdin_lines())
        raise typer.Exit(ExitCode.OK if is_terminal else code)


def _converse(conversation: Conversation, lines: Any) -> ExitCode:
    """All turns; the worst that happened decides how a script's chat ends."""
    worst = ExitCode.OK
    for line in lines:
        text = line.strip()
        if text in ("/quit", "/exit"):
            break
        if text == "/new":
            conversation.restart()
        elif text.startswith("/"):
            say(HELP)
        elif text:
            worst = max(worst, conversation.ask(text))
    return worst


def _typed_lines() -> Iterator[str]:
    """Reads lines until Ctrl-D, or Ctrl-C twice with no answer in progress."""
    import readline  # noqa: F401  # line editing and history for input()

    was_interrupted = False
    while True:
        try:
            line = input(PROMPT)
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            if was_interrupted:
                say("")
                return
            was_interrupted = True
            say("\n(Ctrl-C once more, or Ctrl-D, to leave)")
        else:
            was_interrupted = False
            yield line
