"""An answer whose stream was lost goes on here: its decode worker kept it, and is found by asking.

Knows no placement: what is attached to is computed where it was, or it is gone.
"""

from dataclasses import dataclass

from cluster.codec import reattach_to_bytes
from cluster.errors import (
    AnswerGone,
    DeadlineExceeded,
    NoWorker,
    PenstockError,
    StreamInterrupted,
    WorkerLost,
)
from cluster.types import LostAnswer, WorkerId
from router.caller import Caller
from router.links import Link, Links
from router.reader import Reader
from router.relay import unread
from router.request_line import RequestLine
from router.sent import Sent


@dataclass(slots=True, eq=False)
class Reattachment:
    links: Links
    unread_s: float = 60.0  # so long a client may leave a message unread

    async def serve(self, lost: LostAnswer, caller: Caller, line: RequestLine) -> None:
        """Streams what follows on what the client has, where that is checked. Raises AnswerGone
        where no worker keeps it, NoWorker where one that may could not be asked."""
        sent = line.sent = Sent()
        reader = Reader(caller, self.unread_s)
        try:
            async with reader:
                await self._serve(lost, caller, reader, sent)
        except BaseException as error:
            if not reader.has_gone:
                raise
            raise unread(self.unread_s, sent) from error
        finally:
            caller.tokens_emitted = sent.num_tokens

    async def _serve(self, lost: LostAnswer, caller: Caller, reader: Reader, sent: Sent) -> None:
        request = reattach_to_bytes(lost, tenant=caller.key.tenant)
        first = WorkerId(lost.worker)
        failure: PenstockError = AnswerGone(
            f"No worker keeps the answer to '{lost.request_id}' any more: ask anew."
        )
        links = self.links.all(first)
        if first and all(link.worker.worker_id != first for link in links):
            failure = NoWorker(f"Worker '{first}' is not known here, or not yet: ask again.")
        for link in links:
            try:
                await self._go_on(link, request, caller, reader, sent)
                return
            except AnswerGone:
                pass
            except NoWorker as error:
                failure = error
        raise failure

    async def _go_on(
        self, link: Link, request: bytes, caller: Caller, reader: Reader, sent: Sent
    ) -> None:
        async def pass_on(data: bytes) -> None:
            caller.phase = "decode"
            sent.add(data)
            await reader.send(data)

        try:
            await link.attach(request, caller.remaining_s, pass_on)
        except DeadlineExceeded as error:
            phase = error.metadata.get("phase", "call")
            raise DeadlineExceeded(phase, tokens_emitted=sent.num_tokens) from error
        except WorkerLost as error:
            if sent.is_finished:
                return
            if not sent.num_messages:
                raise NoWorker(f"{error.message} Ask again.") from error
            raise StreamInterrupted(
                error.message, tokens_emitted=sent.num_tokens, is_detached=True
            ) from error
