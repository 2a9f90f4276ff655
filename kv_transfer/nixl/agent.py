"""The door to NIXL: what is used of its API, in our words, and with our errors.

NIXL and the UCX inside it are configured by the environment; an operator's own settings win.
"""

import contextlib
import ctypes
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cluster.addresses import is_loopback
from cluster.errors import ConfigError, TransferFailed
from kv_transfer.geometry import Offsets
from kv_transfer.nixl.address import NixlAddress
from kv_transfer.nixl.kernel_copy import kernel_copies
from kv_transfer.nixl.progress_loop import Steps
from kv_transfer.span_copy import Bytes
from kv_transfer.transport import WriteRefused

MEMORY_TYPE = "DRAM"
DEVICE = 0

# What goes wrong reaches us as an exception; what is printed beside it is no news.
_QUIET = {"NIXL_LOG_LEVEL": "FATAL", "UCX_LOG_LEVEL": "fatal", "UCX_WARN_UNUSED_ENV_VARS": "n"}

# Turns of progress that UCX needs to take an endpoint down. Who connects anew before that,
# or deregisters what was moving, has something freed twice: a crash, then or at any time.
SETTLE_TURNS = 50

Rows = npt.NDArray[np.uint64]  # [num_spans, 3]: address, bytes, device


def may_copy() -> bool:
    """Tells whether UCX writes into a process of this machine without its help."""
    lanes = os.environ.get("UCX_TLS", "all").split(",")
    return kernel_copies() and not {"all", "cma", "sm", "shm", "shared_memory"}.isdisjoint(lanes)


class NixlAgent:
    """Wraps what is used of NIXL, in our words. For one thread at a time."""

    def __init__(self, name: str, host: str, memory: Sequence[Bytes]) -> None:
        """Registers the memory until it is closed. Raises ConfigError."""
        api = _import_nixl(host)
        try:
            config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._nixl = api.nixl_agent(name, config)
            self._registered = [self._register(some) for some in memory]
        except Exception as error:  # NIXL's errors have no other base in common
            raise ConfigError(
                f"NIXL does not start with UCX ({error}): set NIXL_LOG_LEVEL and UCX_LOG_LEVEL to "
                "'info' to see why, or leave 'nixl' out of 'transports'."
            ) from error
        self._is_closed = False
        self._connected: set[str] = set()
        self._turn = 0
        self._settled_at = 0  # the turn; counted from the last end of an endpoint
        self._abandoned: list[tuple[str, Any]] = []  # transfers in flight, by whom they go to
        self._leaving: set[str] = set()  # once nothing is in flight to them
        self._unreleased: list[Any] = []
        self._stages: list[tuple[Any, Bytes]] = []  # of transfers that failed, until all is settled

    @contextlib.contextmanager
    def stage(self, num_bytes: int) -> Iterator[Bytes]:
        """Memory to move from, for a while."""
        stage = np.empty(num_bytes, dtype=np.uint8)
        registered = _asked(self._register, stage)
        try:
            yield stage
        except BaseException:
            self._stages.append((registered, stage))
            raise
        self._deregister(registered)

    def metadata(self) -> bytes:
        return bytes(self._nixl.get_agent_metadata())

    def progress(self) -> None:
        """Does what peers need of us, and releases what was given up before it was over."""
        self._turn += 1
        with contextlib.suppress(TransferFailed):  # a peer's trouble; its transfers tell
            _asked(self._nixl.get_new_notifs)
        unreleased, self._unreleased = self._unreleased, []
        for transfer in unreleased:
            self._release(transfer)
        if self._abandoned:
            self._look_after_abandoned()
        elif self._stages and self._turn >= self._settled_at:
            stages, self._stages = self._stages, []
            for registered, _ in stages:
                self._deregister(registered)

    def move(
        self,
        operation: Literal["READ", "WRITE"],
        target: NixlAddress,
        ours: Rows,
        theirs: Rows,
        may_start: Callable[[], bool] = lambda: True,
    ) -> Steps[None]:
        """Done when the bytes are there. Raises TransferFailed."""
        yield from self._connect(target)
        transfer = self._prepare(operation, target, ours, theirs)
        state = "NEW"
        try:
            if not may_start():
                raise WriteRefused("The grant was stopped or lapsed before the write started.")
            state = "ERR"
            state = _asked(self._nixl.transfer, transfer)
            while state == "PROC":
                yield
                state = self._state(transfer)
        finally:
            self._end(target.incarnation, transfer, state)
        if state != "DONE":
            raise TransferFailed("NIXL gave the transfer up.")

    def _end(self, name: str, transfer: Any, state: str) -> None:
        """Releases it, unless it is in flight: nobody may, and it is looked after."""
        if state == "PROC":
            self._abandoned.append((name, transfer))
            return
        self._release(transfer)
        if state == "ERR":
            self.disconnect(name)  # so that the next one connects anew

    def _look_after_abandoned(self) -> None:
        states = [(*each, self._state(each[1])) for each in self._abandoned]
        self._abandoned = [(name, transfer) for name, transfer, state in states if state == "PROC"]
        for name, transfer, state in states:
            if state != "PROC":
                self._end(name, transfer, state)
        for name in self._leaving - {name for name, _ in self._abandoned}:
            self.disconnect(name)

    def _state(self, transfer: Any) -> str:
        try:
            return str(_asked(self._nixl.check_xfer_state, transfer))
        except TransferFailed:
            return "ERR"

    def disconnect(self, name: str) -> None:
        """Forgets a peer, as soon as nothing is in flight to it: NIXL frees what is."""
        if any(name == each for each, _ in self._abandoned):
            self._leaving.add(name)
        elif name in self._connected:
            self._leaving.discard(name)
            self._connected.remove(name)
            self._settled_at = self._turn + SETTLE_TURNS
            with contextlib.suppress(TransferFailed):  # it knows already
                _asked(self._nixl.remove_remote_agent, name)

    def close(self) -> None:
        """Ends NIXL, or lets it be where a peer stands still with bytes of ours under way."""
        if self._is_closed:
            return
        self._is_closed = True
        for name in list(self._connected):
            self.disconnect(name)
        for _ in range(SETTLE_TURNS):
            self.progress()
        if self._abandoned:  # UCX would complete them as it ends, and use what is freed by then
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
            return
        for memory in self._registered:
            self._deregister(memory)
        self._nixl = None

    def _register(self, memory: Bytes) -> Any:
        region = (memory.ctypes.data, memory.nbytes, DEVICE, "")
        return self._nixl.register_memory([region], MEMORY_TYPE)

    def _deregister(self, registered: Any) -> None:
        with contextlib.suppress(TransferFailed):  # it goes with the agent
            _asked(self._nixl.deregister_memory, registered)

    def _connect(self, target: NixlAddress) -> Steps[None]:
        """Makes it known to NIXL, unless it is."""
        name = target.incarnation
        self._leaving.discard(name)
        while name not in self._connected and self._turn < self._settled_at:
            yield
        if name not in self._connected:
            _asked(self._nixl.add_remote_agent, target.metadata)
            self._connected.add(name)

    def _prepare(self, operation: str, target: NixlAddress, ours: Rows, theirs: Rows) -> Any:
        descriptors = [self._nixl.get_xfer_descs(rows, MEMORY_TYPE) for rows in (ours, theirs)]
        return _asked(self._nixl.initialize_xfer, operation, *descriptors, target.incarnation)

    def _release(self, transfer: Any) -> None:
        """Releases it, now or later: parts of one that failed may still be in flight."""
        try:
            _asked(transfer.release)
        except TransferFailed:
            self._unreleased.append(transfer)


def _asked(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:  # NIXL's errors have no other base in common
        raise TransferFailed(f"NIXL says {error}.") from error


def _import_nixl(host: str) -> Any:
    """Its API. The environment is read as the first agent is made."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if is_loopback(host):
        os.environ.setdefault("UCX_NET_DEVICES", "lo")
    raises = logging.raiseExceptions
    try:
        import nixl
    except ImportError as error:
        raise ConfigError(
            f"The transport 'nixl' needs NIXL ({error}): pip install nixl, or leave "
            "it out of 'transports'."
        ) from error
    finally:
        logging.raiseExceptions = raises  # it sets this for the whole process
    return nixl


def rows(base: int, offsets: Offsets, sizes: Offsets) -> Rows:
    """Descriptors as NIXL takes them: address, bytes, device."""
    rows = np.empty((len(offsets), 3), dtype=np.uint64)
    rows[:, 0] = base + offsets
    rows[:, 1] = sizes
    rows[:, 2] = DEVICE
    return rows
