"""A peer that has said all ends its call; signs of life that cross its last words do no harm."""

import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.channel import Exchange
from cluster.errors import PenstockError
from kv_transfer.incoming import ReservationTable
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster


async def test_a_long_check_outlives_the_call(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt's digests take longer than the pause between two signs of life."""
    crossed = threading.Event()
    send, first_wrong = Exchange.send, ReservationTable._first_wrong

    async def noted(call: Exchange, message: Any) -> None:
        try:
            await send(call, message)
        except PenstockError:
            crossed.set()
            raise

    def slow(*arguments: Any) -> Any:
        assert crossed.wait(10), "no sign of life was sent during the check"
        return first_wrong(*arguments)

    settings = {"lease_s": 0.3, "probe_tokens": 0}
    async with LocalCluster(
        checkpoint, tmp_path, disaggregate="always", prefill=[settings], decode=[settings]
    ) as cluster:
        monkeypatch.setattr(Exchange, "send", noted)
        monkeypatch.setattr(ReservationTable, "_first_wrong", slow)
        prompt = prompt_of(1, 50)
        answer = await cluster.generate(greedy(prompt, 4))
        assert answer.token_ids == expected(prompt, 4)
        assert answer.messages[-1].finished.timeline.recomputes == 0
