"""Says what computes for a worker, as the rest of it sees that: the seam to an engine. There is a
scheduler of ours over `engine/`; an engine with a scheduler of its own would be another.
"""

from collections.abc import Callable
from typing import Protocol

from cluster.types import BlockId, LoadReport
from engine.sequence import Sequence
from worker.kv_home import KvHome


class Compute(Protocol):
    """Computes for a worker of either role. None of its methods wait."""

    @property
    def kv(self) -> KvHome: ...

    @property
    def num_running(self) -> int:
        """Sequences of which each may need a block more at any step."""

    @property
    def num_waiting(self) -> int: ...

    @property
    def could_run(self) -> bool:
        """Tells whether a step could be formed now."""

    def submit(self, sequence: Sequence) -> None:
        """Computes the prompt here; the sequence's owner is told what comes of it."""

    def drop(self, sequence: Sequence) -> None:
        """Ends a sequence in any state: nobody reads its blocks any more."""

    def release(self, blocks: list[BlockId]) -> None:
        """Gives blocks back to the pool: others may wait for them."""

    def load(self) -> LoadReport: ...

    def counters(self) -> dict[str, float]: ...

    def check(self) -> None:
        """Raises AssertionError unless every block is accounted for."""


class DecodeCompute(Compute, Protocol):
    """Computes answers, whose prompts may come from elsewhere."""

    def expect(self, sequence: Sequence) -> None:
        """Its prompt will be computed elsewhere and then claim blocks. It counts among those that
        wait here until then, or until it is forgone."""

    def claim(self, sequence: Sequence, granted: Callable[[], None]) -> None:
        """Asks for blocks for a prompt computed elsewhere; `granted` is called once they are
        in its block table, at once or later."""

    def join(self, sequence: Sequence, forks: list[Sequence]) -> None:
        """The KV of all its tokens but the last has landed: runs it, and its siblings."""

    def forgo(self, sequence: Sequence) -> list[BlockId]:
        """Ends a claim, or the expectation of one. Returns the granted blocks that a writer may
        still write: whoever called gives them back through `release` once the writer cannot."""

    def pause(self, sequence: Sequence) -> None:
        """Its reader has stalled: it does not run, nor hold for long what others wait for."""

    def resume(self, sequence: Sequence) -> None: ...

    def look_again(self) -> bool:
        """Time has passed: whoever is paused may have held blocks for long enough. Returns whether
        anybody still is."""
