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

    __slots__ = ("_first", "_messages", "_most_bytes", "num_bytes")

    def __init__(self, num_before: Sequence[int] = (0,), *, most_bytes: int = KEPT_BYTES) -> None:
        """`num_before`: by choice, how many tokens were said before this begins."""
        self._messages: list[bytes] = []
        self._most_bytes = most_bytes
        self._first = [*num_before]  # by choice: the first of its tokens that may be kept
        self.num_bytes = 0

    def add(self, data: bytes, num_bytes: int) -> None:
        """`num_bytes`: its cost."""
        self._messages.append(data)
        self.num_bytes += num_bytes
        if self.num_bytes > 2 * self._most_bytes:  # seldom: half of them at a time
            self._forget_first()

    def after(self, next_index: Sequence[int]) -> list[bytes]:
        """Gives what follows on the tokens that the client has, by choice; never `accepted`. Raises
        AnswerGone where some of that is not kept, or not said yet; InvalidRequest for what is no
        place in it."""
        due, said = [*next_index], [*self._first]
        if len(due) != len(said):
            raise InvalidRequest("next_index", f"This answer has {len(said)} choices: name each.")
        for each, first in zip(due, said, strict=True):
            _check_kept(each, first)
        found, left = [], set(range(len(due)))  # choices of which more may be due before here
        for data in reversed(self._messages):  # it takes as long as what is due is long
            message = GenerateResponse.FromString(data)
            num_deltas = len(message.deltas)
            fresh = [delta for delta in message.deltas if _is_due(delta, due[delta.choice])]
            for delta in message.deltas:
                said[delta.choice] = max(said[delta.choice], _end(delta))
                if delta.index <= due[delta.choice]:
                    left.discard(delta.choice)
            if fresh or message.HasField("finished"):
                if message.HasField("accepted") or len(fresh) < num_deltas:
                    finished = message.finished if message.HasField("finished") else None
                    data = GenerateResponse(deltas=fresh, finished=finished).SerializeToString()
                found.append(data)
            if not left:
                break
        for each, end in zip(due, said, strict=True):
            _check_said(each, end)
        return found[::-1]

    def _forget_first(self) -> None:
        at, num_others = 0, len(self._messages) - 1  # the last says how the answer ended
        while self.num_bytes > self._most_bytes and at < num_others:
            self.num_bytes -= cost(self._messages[at])
            at += 1
        # Serialised messages that follow each other are one, with all their deltas.
        for delta in GenerateResponse.FromString(b"".join(self._messages[:at])).deltas:
            self._first[delta.choice] = _end(delta)
        del self._messages[:at]


def _end(delta: Delta) -> int:
    return delta.index + len(delta.token_ids)


def _is_due(delta: Delta, first: int) -> bool:
    """Tells whether the client, who lacks `first` and what follows, lacks these tokens."""
    if delta.index < first < _end(delta):
        raise InvalidRequest(
            "next_index", f"Token {first} does not begin a message of this answer."
        )
    return first <= delta.index


def _check_kept(due: int, first: int) -> None:
    if due < first:
        raise AnswerGone(
            f"This answer goes on after token {first}, and token {due} was asked for: ask anew."
        )


def _check_said(due: int, end: int) -> None:
    """Another worker may have gone on with the answer, and said more of it."""
    if due > end:
        raise AnswerGone(f"Only {end} tokens of this answer were said here, not {due}: ask anew.")
