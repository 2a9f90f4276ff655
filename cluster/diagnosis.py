"""The `Diagnose` RPC of every process: its facts, collected when they are asked for."""

import asyncio
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cluster import host
from cluster.checkpoint_review import CheckpointReview
from cluster.errors import PenstockError
from cluster.facts import ProcessFacts, StoreAnswer
from cluster.facts_codec import facts_to_pb
from cluster.rpc import Call
from cluster.wire_version import WIRE_VERSION
from penstock.v1 import worker_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Holds what of a process's configuration its facts are about."""

    secrets_file: Path
    store: str = ""  # the URL of a Redis; anything else: none over the network
    store_password: str | None = field(default=None, repr=False)
    run_dir: Path | None = None
    num_threads: int = 1
    checks_content: bool = True
    required_transport: str | None = None
    review: CheckpointReview | None = None
    choices: Mapping[str, str] = field(default_factory=dict)  # grows: read when it is asked for
    tls_ports: set[int] = field(default_factory=set)  # grows, too: where it listens under TLS

    async def diagnose(
        self, request: worker_pb2.DiagnoseRequest, call: Call
    ) -> worker_pb2.DiagnoseResponse:
        return facts_to_pb(await self.facts(measures_memory=request.measure_memory))

    async def facts(self, *, measures_memory: bool = False) -> ProcessFacts:
        """Takes some 30 ms, or what the store takes to answer; steps go on meanwhile."""
        speed = await asyncio.to_thread(host.memory_bytes_per_s) if measures_memory else 0.0
        store = (
            await _store_answer(self.store, self.store_password) if "://" in self.store else None
        )
        return ProcessFacts(
            machine=host.machine(),
            versions=host.versions(),
            wire_version=WIRE_VERSION,
            memlock_bytes=host.limit(resource.RLIMIT_MEMLOCK),
            max_open_files=host.limit(resource.RLIMIT_NOFILE),
            num_open_files=host.num_open_files(),
            num_cpus=host.num_cpus(),
            num_threads=self.num_threads,
            run_dir=host.folder(self.run_dir) if self.run_dir else None,
            listening=host.listening(),
            secrets_mode=host.mode_of(self.secrets_file),
            store=store,
            checks_content=self.checks_content,
            required_transport=self.required_transport,
            memory_bytes_per_s=speed,
            review=self.review,
            choices=dict(self.choices),
            tls_ports=frozenset(self.tls_ports),
            unix_s=time.time(),  # last: it is compared with when the answer arrives
        )


async def _store_answer(url: str, password: str | None) -> StoreAnswer:
    """Asks over a connection of its own. The URL may hold a password: only its address is told."""
    from cluster.redis_store import RedisStore  # here: its library takes 0.15 s to import

    parts = urlsplit(url)
    address = f"{parts.hostname}:{parts.port or 6379}"
    begin = time.perf_counter()
    problem = ""
    try:
        store = RedisStore(url, password=password)
        try:
            await store.get("doctor")
        finally:
            await store.close()
    except PenstockError as error:
        problem = error.message
    return StoreAnswer(address=address, seconds=time.perf_counter() - begin, problem=problem)
