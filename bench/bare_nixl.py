"""NIXL's own API as a yardstick: two agents, one WRITE a turn, polled without a pause."""

import threading
import time
from typing import Any

import numpy as np

from bench.kv_cases import Turns
from kv_transfer.span_copy import Bytes

WRITER, RECEIVER = "bench-writer", "bench-receiver"
PROGRESS_S = 0.001  # a first write needs both ends' progress


def _agent(name: str, pool: Bytes) -> tuple[Any, Any]:
    """An agent, and the pool as it knows it. The environment is as the door has set it."""
    from nixl._api import nixl_agent, nixl_agent_config

    agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
    return agent, agent.register_memory([(pool.ctypes.data, len(pool), 0, "pool")], "DRAM")


def _rows(base: int, offsets: Any, sizes: Any) -> Any:
    """Address, length, device of each span, as NIXL takes them."""
    return np.stack([base + offsets, sizes, np.zeros_like(sizes)], axis=1).astype(np.uint64)


class NixlSender:
    name = "bare NIXL"

    def __init__(self, source: Bytes, *, metadata: bytes, address: int) -> None:
        self._agent, self._registered = _agent(WRITER, source)
        self._peer = self._agent.add_remote_agent(metadata)
        self._bases = (source.ctypes.data, address)

    def move(self, turns: Turns, turn: int) -> float:
        pairs, agent = turns.pairs(turn), self._agent
        ours = _rows(self._bases[0], pairs.source, pairs.sizes)
        theirs = _rows(self._bases[1], pairs.destination, pairs.sizes)
        begin = time.perf_counter()
        write = agent.initialize_xfer(
            "WRITE",
            agent.get_xfer_descs(ours, "DRAM"),
            agent.get_xfer_descs(theirs, "DRAM"),
            self._peer,
        )
        state = agent.transfer(write)
        while state == "PROC":
            state = agent.check_xfer_state(write)
        seconds = time.perf_counter() - begin
        agent.release_xfer_handle(write)
        if state != "DONE":
            raise ConnectionError(f"A bare NIXL write ended as {state}.")
        return seconds

    def close(self) -> None:
        self._agent.remove_remote_agent(self._peer)
        self._agent.deregister_memory(self._registered)


class NixlReceiver:
    def __init__(self, pool: Bytes) -> None:
        self._agent, self._registered = _agent(RECEIVER, pool)
        self.metadata: bytes = self._agent.get_agent_metadata()
        self.address: int = pool.ctypes.data
        self._ends = threading.Event()
        self._progress = threading.Thread(target=self._run)
        self._progress.start()

    def close(self) -> None:
        self._ends.set()
        self._progress.join()
        self._agent.deregister_memory(self._registered)

    def _run(self) -> None:
        while not self._ends.wait(PROGRESS_S):
            self._agent.get_new_notifs()
