"""The client's end of a door: whoever listens proves itself before anything else is said, and anew
on each connection.

gRPC makes a lost connection again by itself, with whoever listens there then. So only a knock may
connect: a call needs passes earned on the connection that is there, and what it says is held back
if that has been lost meanwhile (`is_known`).
"""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio

from cluster.errors import DeadlineExceeded, PenstockError, Unauthenticated, WorkerLost
from cluster.proof import ANYONE, Challenge, Passes
from cluster.tls import from_call
from penstock.v1 import worker_pb2

KNOCK_S = 5.0  # for an answer, once connected
_PROVE = "/penstock.v1.Door/Prove"


class Visitor:
    """Knows who we are to the other end of one channel, and whether we know whom we talk to."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        token: str,
        audience: str = ANYONE,
        *,
        is_tls: bool = False,
    ) -> None:
        self._channel = channel
        self._address = address
        self._token = token
        self._audience = audience
        self._is_tls = is_tls
        self._passes: Passes | None = None
        self._is_doubted = False
        self._knocking: asyncio.Task[None] | None = None
        self._prove: Any = channel.unary_unary(
            _PROVE,
            request_serializer=worker_pb2.ProveRequest.SerializeToString,
            response_deserializer=worker_pb2.ProveResponse.FromString,
        )

    def is_known(self) -> bool:
        """Tells whether what is said now reaches who has proven itself."""
        if self._channel.get_state() is not grpc.ChannelConnectivity.READY:
            self._passes = None
        return self._passes is not None

    def failed(self, error: PenstockError) -> PenstockError:
        """A call has: if its connection was lost, or its pass refused, the next one knocks again.
        Returns what to raise."""
        if not isinstance(error, WorkerLost | Unauthenticated):
            return error
        self._is_doubted = True
        return self._not_proven(error)

    async def pass_for(self, path: str, timeout_s: float | None, *, waits: bool = False) -> str:
        """Lets one call in. With `waits` a peer that is away is waited for.

        Raises WorkerLost or DeadlineExceeded; Unauthenticated where nobody in particular is
        looked for, and whoever is there does not prove that it is one of us.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._is_doubted or not self.is_known():
            if self._knocking is None:
                self._knocking = asyncio.create_task(self._knock(waits), name="knock")
                self._knocking.add_done_callback(self._knocked)
            knocking = self._knocking
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            await asyncio.wait({knocking}, timeout=left_s)
            if not knocking.done():
                raise DeadlineExceeded("call")
            knocking.result()
        assert self._passes is not None
        return self._passes[path]

    async def _knock(self, waits: bool) -> None:
        challenge = Challenge(self._token, self._audience)
        request = worker_pb2.ProveRequest(
            nonce=challenge.nonce, audience=challenge.audience, proof=challenge.proof
        )
        try:
            answer = await self._prove(request, timeout=KNOCK_S, wait_for_ready=waits)
            self._passes = challenge.accept(answer.nonce, answer.proof)
            self._is_doubted = False
        except grpc.aio.AioRpcError as error:
            raise self._not_proven(from_call(error, is_tls=self._is_tls)) from error
        except Unauthenticated as error:
            raise self._not_proven(error) from error
        except grpc.aio.UsageError as error:
            raise WorkerLost(f"The channel to {self._address} is closed.") from error
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            raise WorkerLost(f"The channel to {self._address} is closed.") from error

    def _knocked(self, knocking: asyncio.Task[None]) -> None:
        self._knocking = None
        if not knocking.cancelled():
            knocking.exception()  # whoever waited has it; perhaps nobody did

    def _not_proven(self, error: PenstockError) -> PenstockError:
        if isinstance(error, WorkerLost):
            return error
        if self._audience:
            return WorkerLost(
                f"Whoever listens at {self._address} does not prove to be the worker that "
                f"registered from there: {error.message}"
            )
        if isinstance(error, DeadlineExceeded):
            return error
        return Unauthenticated(
            f"Whoever listens at {self._address} does not prove to be of this cluster: "
            f"{error.message}"
        )
