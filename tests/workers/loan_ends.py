"""Either end of a loan, said word by word: a borrower against a real lender, and the other way
round. How the words are spelt on the wire is known here alone."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

from cluster.block_hash import grain_hashes, hash_key
from cluster.channel import Exchange, open_channel
from cluster.codec import hashes_to_bytes
from cluster.door import door_service
from cluster.proof import Doorkeeper, audience_of
from cluster.rpc import UNBOUNDED, Call, Server, service_handlers
from cluster.types import WorkerAddress
from cluster.worker_codec import address_from_pb, address_to_pb
from kv_transfer.incoming import Reservation
from penstock.v1 import worker_pb2 as pb
from tests.router.fake_worker import TOKEN
from tests.workers.local_cluster import Running
from worker.transfer_codec import grant_to_pb

LENDERS = ["prompt", "prefix", "pattern"]


class ScriptedBorrower:
    """Asks a real worker for a loan. What is granted are blocks of another real worker."""

    def __init__(self, call: Exchange, what: str, lender: Running, receiver: Running) -> None:
        self._call = call
        self._what = what
        self._lender = lender
        self._receiver = receiver
        self.num_found = 0
        self.reservations: list[Reservation] = []

    async def start(self, prompt: Sequence[int]) -> None:
        match self._what:
            case "prompt":
                what: dict[str, Any] = {"prompt": _request(prompt)}
            case "prefix":
                what = {"hashes": hashes_to_bytes(_hashes(self._receiver, prompt))}
            case _:
                what = {"probe_tokens": len(prompt)}
        start = pb.LendStart(borrower=_address(self._receiver), **what)
        await self._call.send(pb.LendRequest(start=start))

    async def found(self) -> int:
        """How many tokens may be granted."""
        while (word := await self.hear())[0] != "found":
            assert word[0] == "alive"
        self.num_found = word[1]
        return self.num_found

    async def grant(self, num_more: int = 0, *, lease_s: float | None = None) -> None:
        """Lends what was found, and so many tokens beyond it."""
        transfers, stop = self._receiver.worker._transfers, self.num_found + num_more
        peer = await transfers.peers.connect(address_from_pb(_address(self._lender)))
        pool = self._receiver.pool
        reservation = transfers.table.reserve(
            pool.allocate(-(-stop // pool.block_size)), 0, stop, lease_s=30.0, peer=peer
        )
        self.reservations.append(reservation)
        lease_s = self._receiver.worker.config.lease_s if lease_s is None else lease_s
        grant = replace(reservation.grant, lease_s=lease_s)
        await self._say(grant=grant_to_pb(grant))

    async def live(self, epoch: int = 0) -> None:
        """Says that it lives."""
        await self._say(renew=pb.Renew(epoch=epoch))

    async def hear(self) -> tuple[str, int]:
        """The next word, with its number of tokens; raises what the call ends with."""
        message = await self._call.receive()
        if message is None:
            return "end", 0
        match message.WhichOneof("event"):
            case "found":
                return "found", message.found.num_tokens
            case "first_tokens":
                return "tokens", len(message.first_tokens.tokens)
            case "written":
                for reservation in self.reservations:
                    if reservation.epoch == message.written.epoch:
                        reservation.writer_closed("all is written")
                return "written", message.written.stop_token
            case _:
                return "alive", 0

    async def heard_until(self, *words: str) -> list[str]:
        """What is said until one of these, without signs of life."""
        said = []
        while (word := (await self.hear())[0]) not in words:
            said += [word] if word != "alive" else []
        return [*said, word]

    async def _say(self, **word: Any) -> None:
        await self._call.send(pb.LendRequest(**word))


@asynccontextmanager
async def borrower(
    what: str, lender: Running, receiver: Running
) -> AsyncIterator[ScriptedBorrower]:
    async with (
        open_channel(lender.address, TOKEN) as channel,
        channel.exchange("penstock.v1.Worker", "Lend", timeout_s=20) as call,
    ):
        loan = ScriptedBorrower(call, what, lender, receiver)
        try:
            yield loan
        finally:
            for reservation in loan.reservations:
                receiver.worker._transfers.table.let_go(reservation)


class ScriptedLender:
    """Serves loans by a script: says the words that it is told to. It has a real worker's pool."""

    def __init__(self, pool_of: Running, script: Callable[["Said"], Awaitable[None]]) -> None:
        self._worker = pool_of.worker.member.worker
        self._script = script
        self.num_asked = 0
        self.num_fenced = 0
        door = self._door = Doorkeeper(TOKEN)
        worker = {"Lend": self._lend, "Fence": self._fence}
        self._server = Server(
            [
                door_service(door),
                service_handlers("penstock.v1.Worker", worker, door=door, deadlines=UNBOUNDED),
            ]
        )

    @property
    def address(self) -> pb.WorkerAddress:
        return address_to_pb(self._named)

    @property
    def _named(self) -> WorkerAddress:
        return replace(self._worker, address=self._server.address)

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        self._door.audience = audience_of(self._named)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._server.__aexit__(*error)

    async def _lend(self, call: Call) -> None:
        start = (await call.receive()).start
        self.num_asked += 1
        await self._script(Said(call, start))

    async def _fence(self, request: pb.FenceRequest, call: Call) -> pb.FenceResponse:
        self.num_fenced += len(request.epochs)
        return pb.FenceResponse(incarnation=self._worker.incarnation)


class Said:
    """What a script may say and hear in one loan."""

    def __init__(self, call: Call, start: pb.LendStart) -> None:
        self._call = call
        self.is_prompt = start.HasField("prompt")
        prompt = len(start.prompt.prompt_token_ids)
        self.num_tokens = prompt or start.probe_tokens or len(start.hashes) // 16 * 16

    async def found(self) -> None:
        await self._send(found=pb.Found(num_tokens=self.num_tokens))

    async def granted(self) -> pb.Grant:
        """Hears until there is a grant."""
        while (message := await self._call.receive()) is not None:
            if message.WhichOneof("event") == "grant":
                return message.grant
        raise AssertionError("the borrower left without a grant")

    async def tokens(self, *token_ids: int) -> None:
        tokens = [pb.SampledToken(token_id=token_id) for token_id in token_ids]
        await self._send(first_tokens=pb.FirstTokens(tokens=tokens))

    async def written(self, epoch: int = 1) -> None:
        await self._send(written=pb.Written(epoch=epoch, stop_token=self.num_tokens))

    async def left(self) -> None:
        """Returns when the borrower has gone."""
        while await self._call.receive() is not None:
            pass

    async def _send(self, **word: Any) -> None:
        await self._call.send(pb.LendResponse(**word))


def _address(running: Running) -> pb.WorkerAddress:
    worker: WorkerAddress = running.worker.member.worker
    return address_to_pb(replace(worker, address=running.address))


def _hashes(running: Running, prompt: Sequence[int]) -> list[Any]:
    worker = running.worker
    fingerprint = worker.member.worker.fingerprint
    key = hash_key(
        worker.parts.secrets.hash_secret,
        tenant="default",
        cache_scope="",
        model_digest=fingerprint.model_digest,
    )
    return list(grain_hashes(key, list(prompt), fingerprint.hash_grain))


def _request(prompt: Sequence[int]) -> pb.DecodeRequest:
    params = pb.ResolvedParams(top_p=1.0, repetition_penalty=1.0, num_choices=1, max_tokens=8)
    return pb.DecodeRequest(
        request_id="loan", prompt_token_ids=prompt, params=params, tenant="default"
    )
