"""Two ranks that move tensors, made without a global group: the one door to torch.distributed."""

import hmac
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from enum import IntEnum
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from cluster.errors import ConfigError, TransferFailed
from kv_transfer.collective.line import Line
from kv_transfer.staging import HOST_STAGE_BYTES

MAX_ENTRIES = 64
DEVICE_STAGE_BYTES = 16 << 20

# Read by torch when an NCCL group is made. A wait then waits on the host, with a timeout, and an
# error is an exception of that wait, where the default is to end the process.
_NCCL_ENVIRONMENT = {
    "TORCH_NCCL_BLOCKING_WAIT": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}

T = TypeVar("T")
Wait = Callable[[], None]


class Rank(IntEnum):
    RECEIVER = 0
    WRITER = 1


class _Backend(Protocol):
    def send(self, tensors: list[Tensor], rank: int, tag: int) -> Any: ...
    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> Any: ...
    def abort(self) -> None: ...


class LineStore(c10d.Store):
    """The store of a group of two: what one rank sets, the line brings to the other."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line
        self._entries: dict[str, bytes] = {}
        self._is_finished = False

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]
        self._entries[key] = value
        if not self._is_finished:
            self._line.send_entry(key, value)

    def get(self, key: str) -> bytes:
        while key not in self._entries:
            self._receive()
        return self._entries[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        return all(key in self._entries for key in keys)

    def finish(self) -> None:
        """The group stands: from now on the line carries writes."""
        self._is_finished = True
        self._line.send_entry("", b"")
        self.get("")

    def _receive(self) -> None:
        if self._is_finished and "" in self._entries:
            raise TransferFailed("The process group asks for what was never set.")
        key, value = self._line.receive_entry()
        if len(self._entries) >= MAX_ENTRIES:
            raise TransferFailed("The other end sends entries without end.")
        self._entries[key] = value


class ProcessGroup:
    """Tensors arrive in the order in which they were sent. For one thread, but `abort`."""

    def __init__(
        self, store: LineStore, backend: _Backend, rank: Rank, device: torch.device
    ) -> None:
        """`device` is where its tensors lie."""
        self.device = device
        # What is sent at a time: the same at both ranks.
        self.stage_bytes = HOST_STAGE_BYTES if device.type == "cpu" else DEVICE_STAGE_BYTES
        self._store = store  # torch does not keep it
        self._backend = backend
        self._other = 1 - rank
        # Gloo's end of an operation is a little later than its `wait` says, and its destructor
        # spins for that, on few cores for a whole time slice: 4 ms. So it comes later.
        self._past: deque[Any] = deque(maxlen=8)

    def send(self, run: Tensor) -> Wait:
        """Begins; the run must stay as it is until the wait returns, or raises TransferFailed."""
        return self._begun(partial(self._backend.send, [run], self._other, 0))

    def receive(self, into: Tensor) -> Wait:
        return self._begun(partial(self._backend.recv, [into], self._other, 0))

    def abort(self) -> None:
        """The other rank is dead: what waits fails. Gloo sees that by itself, and ignores this."""
        with suppress(RuntimeError):
            self._backend.abort()

    def _begun(self, begin: Callable[[], Any]) -> Wait:
        work = _translated(begin)

        def wait() -> None:
            work.wait()
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()

        self._past.append(work)
        return partial(_translated, wait)


class GroupMaker:
    """Makes a transport's groups, at both ends of their lines. From any thread."""

    def __init__(self, name: str, pool_device: torch.device, host: str) -> None:
        """Raises ConfigError for groups that cannot be made here."""
        _check(name, pool_device)
        self._is_nccl = name == "nccl"
        self._device = pool_device if self._is_nccl else torch.device("cpu")
        # One for all groups: it is a thread and a listening socket.
        self._gloo = None if self._is_nccl else _gloo_device(host)

    def open(self, line: Line, rank: Rank, prove: Callable[[Rank], bytes]) -> ProcessGroup:
        """`prove` gives what only a rank of this line can say.

        Raises TransferFailed where the other rank does not come, or a stranger does.
        """
        store = LineStore(line)
        backend = _translated(partial(self._backend, store, rank, timedelta(seconds=line.stall_s)))
        group = ProcessGroup(store, backend, rank, self._device)
        _prove_ranks(group, rank, prove)
        store.finish()
        return group

    def _backend(self, store: LineStore, rank: Rank, timeout: timedelta) -> Any:
        if self._is_nccl:
            os.environ.update(_NCCL_ENVIRONMENT)
            options: Any = c10d.ProcessGroupNCCL.Options()
            options._timeout = timeout
            return c10d.ProcessGroupNCCL(store, rank, len(Rank), options)
        options = c10d.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [self._gloo]
        options._threads = 1
        options._timeout = timeout
        return c10d.ProcessGroupGloo(store, rank, len(Rank), options)


def _gloo_device(host: str) -> Any:
    try:
        return c10d.ProcessGroupGloo.create_device(hostname=host)
    except RuntimeError as error:
        raise ConfigError(f"KV cannot be received on '{host}': {error}.") from error


def _check(name: str, pool_device: torch.device) -> None:
    if name == "nccl" and pool_device.type != "cuda":
        raise ConfigError(
            "The transport 'nccl' moves KV between GPUs, and the KV pool lies in host memory: set "
            "'device' to 'cuda', or use another transport."
        )
    if not (c10d.is_nccl_available() if name == "nccl" else c10d.is_gloo_available()):
        raise ConfigError(f"This build of torch has no '{name}': use another transport.")


def _prove_ranks(group: ProcessGroup, rank: Rank, prove: Callable[[Rank], bytes]) -> None:
    """Proves that the other rank is the line's other end: a group's own sockets ask nobody."""
    said = torch.frombuffer(bytearray(prove(rank)), dtype=torch.uint8).to(group.device)
    heard = torch.zeros_like(said)
    # One after the other: NCCL does what it is told in order, and both would wait to receive.
    if rank is Rank.WRITER:
        group.send(said)()
        group.receive(heard)()
    else:
        group.receive(heard)()
        group.send(said)()
    if not hmac.compare_digest(bytes(heard.tolist()), prove(Rank(1 - rank))):
        raise TransferFailed("A stranger is in the process group.")


def _translated(call: Callable[[], T]) -> T:
    try:
        return call()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise TransferFailed(f"The process group failed: {reason[:300]}") from error
