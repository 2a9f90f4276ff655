"""A peer that has said all ends its call, and what is still to be checked then goes on."""

import time
from pathlib import Path
from typing import Any

import pytest

from kv_transfer.incoming import ReservationTable
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster

LEASE_S = 0.3


async def test_a_long_check_outlives_the_call(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt's digests take longer than a lease, in which nobody says anything any more."""
    first_wrong = ReservationTable._first_wrong

    def slow(*arguments: Any) -> Any:
        time.sleep(3 * LEASE_S)  # on the thread that reads
        return first_wrong(*arguments)

    settings = {"lease_s": LEASE_S, "probe_tokens": 0}
    async with LocalCluster(
        checkpoint, tmp_path, disaggregate="always", prefill=[settings], decode=[settings]
    ) as cluster:
        monkeypatch.setattr(ReservationTable, "_first_wrong", slow)
        prompt = prompt_of(1, 50)
        answer = await cluster.generate(greedy(prompt, 4))
        assert answer.token_ids == expected(prompt, 4)
        assert answer.messages[-1].finished.timeline.recomputes == 0
