"""Holds what a stream brings, as plain values, and the fold that turns messages into an answer."""

from dataclasses import dataclass, field

from penstock.errors import IncompleteStreamError
from penstock.v1 import inference_pb2 as pb

Timeline = pb.Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    token_id: int
    logprob: float | None  # None for the first prompt token
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Says who serves the request; arrives with the first token."""

    request_id: str
    model: str
    decode_worker: str
    prefill_worker: str  # empty: the decode worker prefilled
    seed: int
    prompt_tokens: int
    cached_tokens: int
    prompt_logprobs: tuple[Logprob, ...] = ()
    # By which the answer goes on when its stream is lost; empty: it does not.
    resume_secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of one answer. The text may lag the ids: a character is never split."""

    text: str
    token_ids: tuple[int, ...]
    choice: int = 0
    index: int = 0  # position in the answer of the first of these tokens
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One finished answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop" or "length"
    stop_string: str | None = None
    stop_token_id: int | None = None
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A complete stream."""

    choices: tuple[Choice, ...]
    accepted: Accepted
    usage: Usage
    timeline: Timeline

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason


def _logprob(wire: pb.TokenLogprob | pb.PromptLogprob) -> Logprob:
    return Logprob(
        token_id=wire.token_id,
        logprob=wire.logprob if not isinstance(wire, pb.PromptLogprob) or _is_set(wire) else None,
        top=tuple((top.token_id, top.logprob) for top in wire.top),
    )


def _is_set(wire: pb.PromptLogprob) -> bool:
    return wire.HasField("logprob")


def _accepted(wire: pb.Accepted) -> Accepted:
    return Accepted(
        request_id=wire.request_id,
        model=wire.model,
        decode_worker=wire.decode_worker,
        prefill_worker=wire.prefill_worker,
        seed=wire.seed,
        prompt_tokens=wire.prompt_tokens,
        cached_tokens=wire.cached_tokens,
        prompt_logprobs=tuple(map(_logprob, wire.prompt_logprobs)),
        resume_secret=wire.resume_secret,
    )


def _chunk(wire: pb.Delta) -> Chunk:
    return Chunk(
        choice=wire.choice,
        index=wire.index,
        token_ids=tuple(wire.token_ids),
        text=wire.text,
        logprobs=tuple(map(_logprob, wire.logprobs)),
    )


@dataclass(slots=True, eq=False)
class Fold:
    """Folds the messages of one stream. Keeps every chunk, so that the answer can be asked for
    after the last one was read."""

    accepted: Accepted | None = None
    finished: pb.Finished | None = None
    chunks: list[Chunk] = field(default_factory=list)
    num_messages: int = 0

    @property
    def tokens_emitted(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks)

    def next_index(self, choice: int) -> int:
        """How many tokens of it are here."""
        return sum(len(chunk.token_ids) for chunk in self.chunks if chunk.choice == choice)

    def add(self, message: pb.GenerateResponse) -> list[Chunk]:
        self.num_messages += 1
        if message.HasField("accepted"):
            self.accepted = _accepted(message.accepted)
        if message.HasField("finished"):
            self.finished = message.finished
        chunks = [_chunk(delta) for delta in message.deltas]
        self.chunks += chunks
        return chunks

    def answer(self) -> Answer:
        """The whole; raises IncompleteStreamError when its last message never came."""
        if self.finished is None or self.accepted is None:
            raise IncompleteStreamError(
                f"The stream ended without its last message, after {self.tokens_emitted} tokens:"
                " the answer is cut off.",
                metadata={"tokens_emitted": str(self.tokens_emitted)},
            )
        usage = self.finished.usage
        return Answer(
            choices=tuple(map(self._choice, self.finished.choices)),
            accepted=self.accepted,
            usage=Usage(
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
            ),
            timeline=self.finished.timeline,
        )

    def _choice(self, wire: pb.ChoiceFinish) -> Choice:
        chunks = [chunk for chunk in self.chunks if chunk.choice == wire.choice]
        name = pb.FinishReason.Name(wire.reason)
        return Choice(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            finish_reason=name.removeprefix("FINISH_REASON_").lower(),
            stop_string=wire.stop_string if wire.HasField("stop_string") else None,
            stop_token_id=wire.stop_token_id if wire.HasField("stop_token_id") else None,
            logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        )
