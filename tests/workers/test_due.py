"""When a first token is due reaches whoever computes it, wherever that is."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router import placer
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster

# Its steps take longer than the short one's way to its client, also on a machine that stutters.
LONG, SHORT = prompt_of(1, 500), prompt_of(2, 20)


@pytest.fixture(autouse=True)
def long_prompts_have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    place = placer.place

    def timed(request: Any, *others: Any) -> Any:
        decision, state = place(request, *others)
        return replace(decision, due_s=60.0 if request.num_prompt_tokens > 100 else 1.0), state

    monkeypatch.setattr(placer, "place", timed)


@pytest.mark.parametrize("disaggregate", ["always", "never"])
@pytest.mark.slow
async def test_a_short_prompt_passes_a_long_one_that_has_begun(
    checkpoint: Path, tmp_path: Path, disaggregate: str
) -> None:
    steps = {"max_batch_tokens": 8}
    async with LocalCluster(
        checkpoint, tmp_path, decode=[steps], prefill=[steps], disaggregate=disaggregate
    ) as cluster:
        computing = (cluster.prefill if disaggregate == "always" else cluster.decode)[0]
        finished: list[str] = []

        async def ask(name: str, prompt: list[int]) -> None:
            answer = await cluster.generate(greedy(prompt, 1))
            finished.append(name)
            assert answer.token_ids == expected(prompt, 1)

        computing.gate.close()
        async with asyncio.TaskGroup() as group:
            group.create_task(ask("long", LONG))
            await asyncio.to_thread(computing.gate.reached.wait, 10)
            group.create_task(ask("short", SHORT))
            batcher = computing.worker.scheduler.batcher
            await cluster.until(lambda: len(batcher.waiting) == 1)
            backlog = computing.worker.load().backlog
            computing.gate.open()
        assert finished == ["short", "long"]
        now, soon, later = backlog  # the step that runs, the short one, the rest of the long one
        assert now[0] == 0.0 < soon[0] <= 1.0 < later[0] <= 60.0
        assert now[1] < soon[1] < later[1]
