"""Holds what one request has to say and has not said yet: tokens in, messages out.

Turns drawn tokens into text, knows when each choice ends, and packs whatever is waiting into
one message: nothing is delayed, and a slow reader gets fewer, larger messages.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.codec import logprob_to_pb, prompt_logprob_to_pb
from cluster.detokenizer import Detokenizer
from cluster.types import ComputeRequest, SampledToken, TokenLogprob
from decode_worker.timeline import Moment, RequestTimeline
from engine.batcher import Drawn
from engine.sequence import Sequence
from penstock.v1 import inference_pb2 as pb

MAX_UNSENT_TOKENS = 256  # beyond these the sequences of a stalled reader are paused


@dataclass(slots=True, eq=False)
class AnswerChoice:
    """One of n answers."""

    detokenizer: Detokenizer
    num_output: int  # tokens of the answer so far, those of earlier attempts included
    finish: pb.ChoiceFinish | None = None
    unsent: list[SampledToken] = field(default_factory=list)
    text: str = ""


class OwnedAnswer:
    """Owns the choices of one request. Everything but `next_message` is synchronous."""

    def __init__(
        self,
        request: ComputeRequest,
        new_detokenizer: Callable[[], Detokenizer],
        *,
        accepted: pb.Accepted,
        timeline: RequestTimeline,
        stalled: Callable[[Sequence], None],
    ) -> None:
        """`stalled(sequence)` is called while too much of its answer waits to be read."""
        self.request = request
        self.accepted = accepted
        self.timeline = timeline
        self.sequences: set[Sequence] = set()
        self.num_sent = 0
        self.choices = [
            self._begun(i, new_detokenizer()) for i in range(request.params.num_choices)
        ]
        self._stalled = stalled
        self._is_accepted = False
        self._is_closed = False  # the last message is out
        self._error: Exception | None = None
        self._ready = asyncio.Event()

    # -- in: from the scheduler and the hand-over ----------------------------------------

    def scheduled(self) -> None:
        self.timeline.stamp(Moment.SCHEDULED)

    def drawn(self, drawn: Drawn, seconds: float) -> bool:
        """Scheduler's owner: takes one token of one choice; False when the choice has ended."""
        sequence = drawn.sequence
        self.sequences.add(sequence)
        if not self.timeline.has(Moment.FIRST_SAMPLED):
            self.timeline.forward_s += seconds
        if drawn.token is None:
            return True
        if not self.timeline.has(Moment.FIRST_SAMPLED):
            self.accept(sequence.num_cached, drawn.prompt_logprobs)
        is_open = self.push(sequence.choice, drawn.token)
        if not is_open:
            self.sequences.discard(sequence)
            self.timeline.num_preemptions += sequence.num_preemptions
        elif self.num_unsent > MAX_UNSENT_TOKENS:
            for each in self.sequences:  # those that wait to be computed again, too
                self._stalled(each)
        return is_open

    def failed(self, error: Exception) -> None:
        """Ends the stream with this error, after what has been drawn."""
        self._error = error
        self._ready.set()

    def accept(self, num_cached: int, prompt_logprobs: tuple[TokenLogprob, ...]) -> None:
        """The first token is there: what the stream opens with is known now."""
        self.timeline.stamp(Moment.FIRST_SAMPLED)
        self.accepted.cached_tokens = num_cached
        # One row fewer than the prompt has tokens: none is no sign that none were asked for.
        asks = self.request.params.sampling.num_prompt_logprobs is not None
        if asks and not any(self.request.emitted):
            first = TokenLogprob(token_id=self.request.prompt_ids[0], logprob=None)
            rows = [prompt_logprob_to_pb(each) for each in (first, *prompt_logprobs)]
            self.accepted.prompt_logprobs.extend(rows)

    def push(self, choice_index: int, token: SampledToken) -> bool:
        """Appends a token; False when the choice has ended with it."""
        choice = self.choices[choice_index]
        choice.num_output += 1
        choice.unsent.append(token)
        finish = self._text_and_finish(choice, token.token_id)
        if finish is not None:
            finish.choice = choice_index
            choice.finish = finish
        self._ready.set()
        return finish is None

    @property
    def num_unsent(self) -> int:
        return sum(len(choice.unsent) for choice in self.choices)

    @property
    def is_finished(self) -> bool:
        return all(choice.finish is not None for choice in self.choices)

    # -- out: to the stream ----------------------------------------------------------------

    async def next_message(self) -> pb.GenerateResponse | None:
        """All that waits, in one message; None after the last. Raises what `failed` was told."""
        while not (self.num_unsent or self._has_error_only()):
            if self.is_finished:
                return None if self._is_closed else self._message()
            self._ready.clear()
            await self._ready.wait()
        if self._has_error_only():
            assert self._error is not None
            raise self._error
        return self._message()

    def _has_error_only(self) -> bool:
        return self._error is not None and not self.num_unsent

    def _message(self) -> pb.GenerateResponse:
        message = pb.GenerateResponse()
        if not self._is_accepted:
            self._is_accepted = True
            self.timeline.stamp(Moment.FIRST_SENT)
            message.accepted.CopyFrom(self.accepted)
        for index, choice in enumerate(self.choices):
            if choice.unsent:
                message.deltas.append(_delta(index, choice))
                self.num_sent += len(choice.unsent)
                choice.unsent, choice.text = [], ""
        if self.is_finished:
            self._is_closed = True
            message.finished.CopyFrom(self._finished())
        return message

    def _finished(self) -> pb.Finished:
        prompt = len(self.request.prompt_ids)
        usage = pb.Usage(
            prompt_tokens=prompt,
            cached_tokens=self.accepted.cached_tokens,
            completion_tokens=sum(choice.num_output for choice in self.choices),
        )
        finishes = [choice.finish for choice in self.choices if choice.finish is not None]
        self.timeline.stamp(Moment.LAST_SENT)
        timeline = pb.Timeline(**self.timeline.fields())  # type: ignore[arg-type]
        return pb.Finished(choices=finishes, usage=usage, timeline=timeline)

    # -- inside ------------------------------------------------------------------------------

    def _begun(self, index: int, detokenizer: Detokenizer) -> AnswerChoice:
        """A choice of which an earlier attempt may have sent tokens, or all of them."""
        emitted = self.request.emitted[index] if index < len(self.request.emitted) else ()
        choice = AnswerChoice(detokenizer=detokenizer, num_output=len(emitted))
        if not emitted:
            return choice
        params = self.request.params
        if emitted[-1] in params.sampling.stop_token_ids:
            choice.finish = _finish(pb.FINISH_REASON_STOP, stop_token_id=emitted[-1])
        elif (delta := detokenizer.replay(emitted)).stop_string is not None:
            choice.finish = _finish(pb.FINISH_REASON_STOP, stop_string=delta.stop_string)
        elif len(emitted) >= params.max_tokens:
            choice.finish = _finish(pb.FINISH_REASON_LENGTH)
        if choice.finish is not None:
            choice.finish.choice = index
        return choice

    def _text_and_finish(self, choice: AnswerChoice, token_id: int) -> pb.ChoiceFinish | None:
        params = self.request.params
        if token_id in params.sampling.stop_token_ids:
            choice.text += choice.detokenizer.finish()
            return _finish(pb.FINISH_REASON_STOP, stop_token_id=token_id)
        delta = choice.detokenizer.push([token_id])
        choice.text += delta.text
        if delta.stop_string is not None:
            return _finish(pb.FINISH_REASON_STOP, stop_string=delta.stop_string)
        if choice.num_output >= params.max_tokens:
            choice.text += choice.detokenizer.finish()
            return _finish(pb.FINISH_REASON_LENGTH)
        return None


def _delta(index: int, choice: AnswerChoice) -> pb.Delta:
    return pb.Delta(
        choice=index,
        index=choice.num_output - len(choice.unsent),
        token_ids=[token.token_id for token in choice.unsent],
        text=choice.text,
        logprobs=[logprob_to_pb(t.logprob) for t in choice.unsent if t.logprob is not None],
    )


def _finish(
    reason: pb.FinishReason, *, stop_string: str | None = None, stop_token_id: int | None = None
) -> pb.ChoiceFinish:
    return pb.ChoiceFinish(reason=reason, stop_string=stop_string, stop_token_id=stop_token_id)
