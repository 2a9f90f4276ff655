"""Sessions whose beginnings workers hold, and clients that go on with them through a router.

What is measured is what a user would notice: which share of the prompts was cached.
"""

import asyncio
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc.aio

from cluster.block_hash import grain_hashes, hash_key
from cluster.types import Fingerprint, GrainHash
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from tests.router.checkpoint import VOCAB_SIZE
from tests.router.fake_worker import FakeWorker

PREFIX_GRAINS, SUFFIX_GRAINS = 24, 1
_RETRY_S = 0.02


def key_of(secret: bytes, fingerprint: Fingerprint) -> bytes:
    """Of prompts without a scope, as the router derives it."""
    digest = fingerprint.model_digest
    return hash_key(secret, tenant="default", cache_scope="", model_digest=digest)


@dataclass(slots=True, eq=False)
class Sessions:
    """Each has a first turn, which one of the workers holds already."""

    grain: int
    first_turns: list[list[int]]
    random: random.Random

    @classmethod
    def drawn(cls, num: int, grain: int, seed: int = 1) -> "Sessions":
        numbers = random.Random(seed)
        length = PREFIX_GRAINS * grain
        turns = [[numbers.randrange(VOCAB_SIZE - 1) for _ in range(length)] for _ in range(num)]
        return cls(grain, turns, numbers)

    def prompt(self) -> list[int]:
        """A session's next turn."""
        suffix = [
            self.random.randrange(VOCAB_SIZE - 1) for _ in range(SUFFIX_GRAINS * self.grain + 1)
        ]
        return [*self.random.choice(self.first_turns), *suffix]

    def fill(self, workers: Sequence[FakeWorker], num_grains: int) -> None:
        """Gives each worker its sessions, and others' grains until it holds so many."""
        for number, turn in enumerate(self.first_turns):
            worker = workers[number % len(workers)]
            assert worker.hash_key is not None
            worker.cache.use(grain_hashes(worker.hash_key, turn, self.grain))
        for worker in workers:
            others = range(num_grains - worker.log.num_grains)
            worker.cache.use([GrainHash(secrets.token_bytes(16)) for _ in others])


@dataclass(frozen=True, slots=True)
class Served:
    asked_at: float  # loop time
    seconds: float  # until the whole answer was there
    num_cached: int
    num_prompt: int


@dataclass(slots=True, eq=False)
class Clients:
    """They ask one after another, each as soon as it is answered; who is refused tries on."""

    sessions: Sessions
    addresses: Sequence[str]  # of the routers, used in turn
    num_clients: int = 4
    served: list[Served] = field(default_factory=list)
    num_refused: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.num_clients):
                address = self.addresses[number % len(self.addresses)]
                tasks.create_task(self._ask_on(address))

    def hit_share(self, since: float, until: float = float("inf")) -> float:
        """Cached tokens of all prompt tokens, over the requests asked in this time."""
        served = [each for each in self.served if since <= each.asked_at < until]
        assert served, "nothing was answered"
        return sum(s.num_cached for s in served) / sum(s.num_prompt for s in served)

    def num_served(self, since: float) -> int:
        return sum(each.asked_at >= since for each in self.served)

    async def _ask_on(self, address: str) -> None:
        options = [("grpc.max_reconnect_backoff_ms", 100), ("grpc.enable_http_proxy", 0)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            while True:
                await self._ask(stub)

    async def _ask(self, stub: inference_pb2_grpc.InferenceStub) -> None:
        prompt = self.sessions.prompt()
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=prompt), stop=pb.LengthAndStop(max_tokens=1)
        )
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        try:
            messages = [message async for message in stub.Generate(request)]
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED):
                raise
            self.num_refused += 1
            await asyncio.sleep(_RETRY_S)
            return
        num_cached = messages[0].accepted.cached_tokens
        self.served.append(Served(asked_at, clock() - asked_at, num_cached, len(prompt)))
