"""What an answer has said, kept for a client that lost its stream: from which of its tokens on it
is said again, exactly. Bounded: of a long answer the end is kept.
"""

from collections.abc import Sequence
from typing import Final

from cluster.errors import AnswerGone, InvalidRequest
from cluster.frames.wire import cost
from penstock.v1.inference_pb2 import Delta, GenerateResponse

# More than a router and its client may have between them of what was sent and has not arrived.
KEPT_BYTES: Final = 512 << 10


class KeptMessages:
    """Keeps the last messages, as the bytes they are: read when they are asked for."""

    __slots__ = ("_messages", "_most_bytes", "_shed", "num_bytes")

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._messages: list[bytes] = []
        self._most_bytes = most_bytes
        self._shed: dict[int, int] = {}  # by choice: the first of its tokens that is still kept
        self.num_bytes = 0

    def add(self, data: bytes, num_bytes: int) -> None:
        """`num_bytes`: its cost."""
        self._messages.append(data)
        self.num_bytes += num_bytes
        if self.num_bytes > 2 * self._most_bytes:  # seldom: half of them at a time
            self._forget_first()

    def after(self, next_index: Sequence[int]) -> list[bytes]:
        """Gives what follows on the tokens that the client has, by choice; never `accepted`. Raises
        AnswerGone where some of that is not kept."""
        due = dict(enumerate(next_index))
        for choice, first in self._shed.items():
            _check_kept(due.get(choice, 0), first)
        found = []
        for data in self._messages:
            message = GenerateResponse.FromString(data)
            num_deltas = len(message.deltas)
            fresh = [delta for delta in message.deltas if _is_due(delta, due)]
            if not fresh and not message.HasField("finished"):
                continue
            if message.HasField("accepted") or len(fresh) < num_deltas:
                finished = message.finished if message.HasField("finished") else None
                data = GenerateResponse(deltas=fresh, finished=finished).SerializeToString()
            found.append(data)
        return found

    def _forget_first(self) -> None:
        at = 0
        while self.num_bytes > self._most_bytes:
            self.num_bytes -= cost(self._messages[at])
            at += 1
        # Serialised messages that follow each other are one, with all their deltas.
        for delta in GenerateResponse.FromString(b"".join(self._messages[:at])).deltas:
            self._shed[delta.choice] = delta.index + len(delta.token_ids)
        del self._messages[:at]


def _is_due(delta: Delta, due: dict[int, int]) -> bool:
    """Tells whether the client lacks these tokens, and counts them."""
    first, end = due.get(delta.choice, 0), delta.index + len(delta.token_ids)
    if end <= first:
        return False
    _check_kept(first, delta.index)
    if delta.index < first:
        raise InvalidRequest(
            "next_index", f"Token {first} does not begin a message of this answer."
        )
    due[delta.choice] = end
    return True


def _check_kept(due: int, first: int) -> None:
    if due < first:
        raise AnswerGone(
            f"This answer goes on after token {first}, and token {due} was asked for: ask anew."
        )
