"""A real router and fake workers in one event loop, and a client that speaks plain gRPC."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import yaml
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.types import Fingerprint, KvLayout, Role
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from router.config import RouterConfig
from router.router import Router
from tests.router.fake_worker import TOKEN, FakeWorker

MODEL = "echo"
HASH_SECRET = bytes.fromhex("00112233445566778899aabb")


@dataclass(slots=True, eq=False)
class Answer:
    """A stream as the client got it."""

    messages: list[pb.GenerateResponse] = field(default_factory=list)
    initial: dict[str, str | bytes] = field(default_factory=dict)

    @property
    def token_ids(self) -> list[int]:
        return [i for m in self.messages for d in m.deltas for i in d.token_ids]

    @property
    def is_complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].HasField("finished")


class Cluster:
    """`async with` runs the router; `worker` makes a fake one for it."""

    def __init__(self, checkpoint: Path, directory: Path, **settings: Any) -> None:
        secrets_file = directory / "secrets.yaml"
        secrets_file.write_text(
            yaml.safe_dump({"cluster_token": TOKEN, "hash_secret": HASH_SECRET.hex()})
        )
        secrets_file.chmod(0o600)
        # All are here before they serve, and who dies does not come back.
        given: dict[str, Any] = {"gather_s": 0.0, "return_s": 0.0, **settings}
        config = RouterConfig(
            checkpoint=checkpoint, model=MODEL, secrets_file=secrets_file, **given
        )
        self.router = Router(config)
        self.drain = asyncio.Event()
        self.address = ""

    @property
    def fingerprint(self) -> Fingerprint:
        identity = self.router.fleet.identity
        return Fingerprint(
            model_digest=identity.model_digest,
            tokenizer_digest=identity.tokenizer_digest,
            template_digest=identity.template_digest,
            hash_grain=identity.hash_grain,
            layout=KvLayout(
                num_layers=2, num_blocks=1000, block_size=16, num_kv_heads=2, head_dim=8
            ),
        )

    def worker(self, name: str, role: Role = Role.DECODE, **changes: Any) -> FakeWorker:
        values = {"fingerprint": self.fingerprint, "model": MODEL, "role": role, **changes}
        return FakeWorker(name, self.router.internal_address or self.address, **values)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for what events of other tasks bring about."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - of a real system, from outside
                await asyncio.sleep(0.005)

    async def serving(self, *workers: FakeWorker) -> None:
        """Waits until the router sends requests to all of these."""
        names = {worker.name for worker in workers}

        def all_serve() -> bool:
            snapshot = self.router.pool.snapshot(self.router.clock())
            return names <= {load.worker for load in snapshot.loads}

        await self.until(all_serve)

    async def generate(
        self,
        request: pb.GenerateRequest | None = None,
        *,
        answer: Answer | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
        timeout_s: float = 10.0,
        **fields: Any,
    ) -> Answer:
        """Streams an answer to its end; `answer` holds what came even if it fails."""
        answer = Answer() if answer is None else answer
        request = request or pb.GenerateRequest(**fields)
        call = self.inference.Generate(request, timeout=timeout_s, metadata=metadata)
        async for message in call:
            answer.messages.append(message)
        answer.initial = dict(await call.initial_metadata())
        return answer

    async def health(self, service: str = "") -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        response = await health_pb2_grpc.HealthStub(self.channel).Check(request)
        return response.status

    def open_channel(self) -> grpc.aio.Channel:
        """A connection of its own to the front door."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        shown = self.router.certificate
        if shown is None:
            return grpc.aio.insecure_channel(self.address, options)
        trusted = grpc.ssl_channel_credentials(shown.served.texts.certificate)
        return grpc.aio.secure_channel(self.address, trusted, options)

    async def __aenter__(self) -> Self:
        ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self.router.run(self.drain, ready.set_result))
        await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            await self._task
        self.address = ready.result()
        self.channel = self.open_channel()
        self.inference: Any = inference_pb2_grpc.InferenceStub(self.channel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.channel.close()
        self.drain.set()
        await self._task
        self.router.pool.check()
        self.router.index.check()
        assert self.router.admission.num_in_flight == 0
        assert self.router.pool.num_in_flight == 0
        self.router.placer.check()
        assert list(self.router.placer.in_flight) == []


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call as a client reads it."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    retry_after_s: float | None
    fields: tuple[str, ...]


def failure(error: grpc.aio.AioRpcError) -> Failure:
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)
        has_retry |= detail.Unpack(retry)
        detail.Unpack(bad)
    return Failure(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        retry_after_s=retry.retry_delay.ToMicroseconds() / 1e6 if has_retry else None,
        fields=tuple(violation.field for violation in bad.field_violations),
    )
