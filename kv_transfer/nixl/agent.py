"""The door to NIXL: what is used of its API, in our words, and with our errors.

NIXL and the UCX inside it are configured by the environment; an operator's own settings win.
"""

import contextlib
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
        self._connected: set[str] = set()
        self._unreleased: list[Any] = []

    @contextlib.contextmanager
    def stage(self, num_bytes: int) -> Iterator[Bytes]:
        """Memory to move from, for a while."""
        stage = np.empty(num_bytes, dtype=np.uint8)
        registered = _asked(self._register, stage)
        try:
            yield stage
        finally:
            with contextlib.suppress(TransferFailed):  # it goes with the agent
                _asked(self._nixl.deregister_memory, registered)

    def metadata(self) -> bytes:
        return bytes(self._nixl.get_agent_metadata())

    def progress(self) -> None:
        """Does what peers need of us, and releases what was given up before it was over."""
        with contextlib.suppress(TransferFailed):  # a peer's trouble; its transfers tell
            _asked(self._nixl.get_new_notifs)
        unreleased, self._unreleased = self._unreleased, []
        for transfer in unreleased:
            self._release(transfer)

    def move(
        self,
        operation: Literal["READ", "WRITE"],
        target: NixlAddress,
        ours: Rows,
        theirs: Rows,
        may_start: Callable[[], bool] = lambda: True,
    ) -> Steps[None]:
        """Done when the bytes are there. Raises TransferFailed."""
        transfer = self._prepare(operation, target, ours, theirs)
        has_failed = False
        try:
            if not may_start():
                raise WriteRefused("The grant was stopped or lapsed before the write started.")
            has_failed = True
            state = _asked(self._nixl.transfer, transfer)
            while state == "PROC":
                yield
                state = _asked(self._nixl.check_xfer_state, transfer)
            has_failed = state != "DONE"
        finally:
            self._release(transfer)
            if has_failed:
                self.disconnect(target.incarnation)  # so that the next one connects anew
        if has_failed:
            raise TransferFailed("NIXL gave the transfer up.")

    def disconnect(self, name: str) -> None:
        if name in self._connected:
            self._connected.remove(name)
            with contextlib.suppress(TransferFailed):  # it knows already
                _asked(self._nixl.remove_remote_agent, name)

    def close(self) -> None:
        for name in list(self._connected):
            self.disconnect(name)
        for memory in self._registered:
            with contextlib.suppress(TransferFailed):  # it goes with the agent
                _asked(self._nixl.deregister_memory, memory)
        self._registered.clear()
        self._unreleased.clear()
        self._nixl = None

    def _register(self, memory: Bytes) -> Any:
        region = (memory.ctypes.data, memory.nbytes, DEVICE, "")
        return self._nixl.register_memory([region], MEMORY_TYPE)

    def _prepare(self, operation: str, target: NixlAddress, ours: Rows, theirs: Rows) -> Any:
        nixl, name = self._nixl, target.incarnation
        if name not in self._connected:
            _asked(nixl.add_remote_agent, target.metadata)
            self._connected.add(name)
        descriptors = [nixl.get_xfer_descs(rows, MEMORY_TYPE) for rows in (ours, theirs)]
        return _asked(nixl.initialize_xfer, operation, *descriptors, name)

    def _release(self, transfer: Any) -> None:
        """Releases it, now or later: what is still in flight cannot always be released yet."""
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
