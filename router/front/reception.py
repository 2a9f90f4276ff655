"""Takes a checked request to the end of its answer, whatever front door it came in by."""

import asyncio
from dataclasses import dataclass

from cluster.tracing import Tracing
from cluster.types import LostAnswer
from router.admission import Admission
from router.caller import Caller
from router.callers.quotas import Quotas
from router.front.prompt import ChatPrompt
from router.front.text_lanes import TextLanes
from router.front.validation import GenerationInput
from router.metrics.requests import RequestCounts
from router.reattachment import Reattachment
from router.relay import Metadata, Relay
from router.request_line import RequestLine


@dataclass(slots=True, eq=False)
class Reception:
    admission: Admission
    quotas: Quotas
    lanes: TextLanes
    relay: Relay
    reattachment: Reattachment
    is_warm: asyncio.Event
    counts: RequestCounts
    model: str = ""  # as clients call it
    tracing: Tracing | None = None  # None: nobody collects

    async def serve(
        self, given: GenerationInput, caller: Caller, line: RequestLine, echo: Metadata = ()
    ) -> None:
        """Streams the answer into `caller`, and fills the log's line. `echo` is metadata that goes
        with the first message."""
        key, line.model = caller.key, self.model
        line.key = key
        if line.trace is not None:
            line.trace.is_chat = isinstance(given.prompt, ChatPrompt)
        with self.admission.admit(given.request_id), self.quotas.in_flight(key, caller):
            await self.quotas.take_request(key)
            caller.phase = "tokenise"
            routed = await self.lanes.routed(given, line.arrived_at)
            line.num_prompt_tokens = routed.ask.num_prompt_tokens
            await self.quotas.take_prompt(key, routed.ask.num_prompt_tokens)
            # Placed before the index knows, it would be computed anew.
            await self.is_warm.wait()
            await self.relay.serve(routed, caller, line, echo)

    async def attach(self, lost: LostAnswer, caller: Caller, line: RequestLine) -> None:
        """Streams the rest of an answer that was begun before, perhaps through another router."""
        key, line.request_id = caller.key, lost.request_id
        line.key, line.is_attached = key, True
        with (
            self.admission.admit(lost.request_id, again=True),
            self.quotas.in_flight(key, caller),
        ):
            await self.is_warm.wait()  # before that its worker may not be known here
            await self.reattachment.serve(lost, caller, line)
