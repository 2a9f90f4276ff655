"""The process in which large texts are read and tokenised, so that this can be ended: reads
requests from its stdin and answers them on its stdout, one after another.

    python -m router.front.text_child SETTINGS

A frame is its kind, its length and its bytes. A request is that of the RPC, in bounds already, and
so is the answer; or it is a body as HTTP brought it. A refusal is the field and the sentence, as
JSON.
"""

import json
import os
import signal
import struct
import sys
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Final, Self

from cluster.chat_template import ChatTemplate
from cluster.detokenizer import whole_text
from cluster.errors import CheckpointError, InvalidRequest, UnsupportedFeature
from cluster.process import configure_logging, follow_parent
from cluster.tokenizer import Tokenizer
from router.front.prompt import prompt_ids
from router.front.text_codec import (
    ids_from_bytes,
    prompt_from_bytes,
    text_to_bytes,
    tokenized_to_bytes,
)
from router.http.reading import BodyKind, packed_asked

HEADER: Final = struct.Struct("<BI")
_NICENESS: Final = 5  # large work gives way where processors are short


class TextKind(IntEnum):
    TOKENIZE = 0
    DETOKENIZE = 1
    DONE = 2
    REFUSED = 3
    UNSUPPORTED = 4
    READ_CHAT = 5  # the body of a request over HTTP
    READ_COMPLETION = 6
    READ_TOKENIZE = 7
    READ_DETOKENIZE = 8
    READ_RESPONSE = 9


_BODIES: Final = {TextKind[f"READ_{kind.name}"]: kind for kind in BodyKind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    checkpoint: str
    tokenizer_digest: str
    template_digest: str
    max_text_bytes: int | None
    max_rendered_chars: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


class TextWork:
    """Does what is to be done with one request."""

    def __init__(self, settings: Settings) -> None:
        checkpoint = Path(settings.checkpoint)
        self._max_text_bytes = settings.max_text_bytes
        self._tokenizer = Tokenizer.load(checkpoint)
        self._template = ChatTemplate.load(checkpoint, max_chars=settings.max_rendered_chars)
        digests = self._tokenizer.digest, self._template.digest
        if digests != (settings.tokenizer_digest, settings.template_digest):
            raise CheckpointError(
                f"The tokenizer or chat template of '{checkpoint}' has changed since the router "
                "started: start it anew."
            )

    def answer(self, kind: TextKind, data: bytes) -> bytes:
        """Raises InvalidRequest, and UnsupportedFeature of a body."""
        if kind in _BODIES:
            return packed_asked(_BODIES[kind], data)
        if kind is TextKind.TOKENIZE:
            prompt = prompt_from_bytes(data, self._max_text_bytes)
            return tokenized_to_bytes(prompt_ids(prompt, self._tokenizer, self._template))
        ids, skip = ids_from_bytes(data)
        return text_to_bytes(whole_text(self._tokenizer, ids, skip_special_tokens=skip))


def serve(work: TextWork, requests: BinaryIO, answers: BinaryIO) -> None:
    """Serves until there are no more requests."""
    while header := requests.read(HEADER.size):
        kind, num_bytes = HEADER.unpack(header)
        try:
            answer, data = TextKind.DONE, work.answer(TextKind(kind), requests.read(num_bytes))
        except InvalidRequest as error:
            answer, data = TextKind.REFUSED, json.dumps([error.field, error.message]).encode()
        except UnsupportedFeature as error:
            said = json.dumps([error.feature, error.message])
            answer, data = TextKind.UNSUPPORTED, said.encode()
        answers.write(HEADER.pack(answer, len(data)) + data)
        answers.flush()


def main() -> None:
    configure_logging()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal: the router drains
    follow_parent()
    os.nice(_NICENESS)
    work = TextWork(Settings.from_json(sys.argv[1]))
    serve(work, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
