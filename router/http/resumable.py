"""What a client keeps of a stream to go on with it after it was lost: a header of its first answer,
and the id of the last event that came. Both are the client's to send back, and checked as such.
"""

import re
from typing import Annotated, Final

from cluster.errors import InvalidRequest
from router.http.asked import Asked
from router.http.call import RESUME_KEY
from router.http.reading import BodyKind
from router.http.typed_json import Meta, Struct, encode, reader

LAST_EVENT_KEY: Final = "last-event-id"
_KINDS: Final = (BodyKind.CHAT, BodyKind.COMPLETION)  # a response numbers all its events
_MAX_CHARS: Final = 1024
_COUNTS: Final = re.compile(r"[0-9]{1,10}(,[0-9]{1,10})*")
_Count = Annotated[int, Meta(ge=0, le=1 << 32)]


class ResumeKey(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The secret of an answer, and how it is spelt."""

    kind: BodyKind
    secret: bytes
    created: _Count
    num_choices: Annotated[int, Meta(ge=1, le=1 << 16)]
    includes_usage: bool
    returns_ids: bool
    num_logprobs: _Count | None = None

    @property
    def asked(self) -> Asked:
        """What the first request asked for, as far as its answer shows it."""
        return Asked(
            messages=[b""],
            is_stream=True,
            includes_usage=self.includes_usage,
            returns_ids=self.returns_ids,
            num_logprobs=self.num_logprobs,
            num_choices=self.num_choices,
        )

    def header(self) -> str:
        return encode(self).hex()


_read_key: Final = reader(ResumeKey)


def is_resumable(kind: BodyKind, asked: Asked) -> bool:
    """Tells whether the rest of a stream can be spelt without what came before: not of several
    prompts, nor where places in the text are told."""
    has_places = kind is BodyKind.COMPLETION and asked.num_logprobs is not None
    is_one = len(asked.messages) == 1 and kind in _KINDS
    return asked.is_stream and is_one and not has_places


def resume_key(kind: BodyKind, asked: Asked, secret: bytes, created: int) -> ResumeKey:
    return ResumeKey(
        kind,
        secret,
        created,
        asked.num_choices,
        asked.includes_usage,
        asked.returns_ids,
        asked.num_logprobs,
    )


def read_resume_key(header: str | None) -> ResumeKey:
    """Raises InvalidRequest."""
    try:
        if header is None or len(header) > _MAX_CHARS:
            raise ValueError
        key = _read_key(bytes.fromhex(header))
        if key.kind not in _KINDS:
            raise ValueError
    except (ValueError, InvalidRequest) as error:
        raise InvalidRequest(
            RESUME_KEY, f"Send the header '{RESUME_KEY}' as the stream that was lost brought it."
        ) from error
    return key


def event_ids(request_id: str) -> bytes:
    """How the ids of all events of an answer begin: the rest is how many tokens are there."""
    return b"id: %b:" % request_id.encode()


def next_index(last_event: str | None, request_id: str, num_choices: int) -> list[int]:
    """Reads the id of the last event that came; None: none has. Raises InvalidRequest."""
    if last_event is None:
        return [0] * num_choices
    named, _, counts = last_event.rpartition(":")
    is_one = named == request_id and _COUNTS.fullmatch(counts) is not None
    found = [int(each) for each in counts.split(",")] if is_one else []
    if len(found) != num_choices or max(found) >= 1 << 32:
        raise InvalidRequest(
            LAST_EVENT_KEY, f"It is no id of an event of '{request_id}': send the last that came."
        )
    return found
