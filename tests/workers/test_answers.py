"""Whichever way a request goes, the answer is the one that the model gives alone."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock.v1 import inference_pb2 as pb
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster


@pytest.mark.slow
@pytest.mark.parametrize("disaggregate", ["always", "never"])
@pytest.mark.parametrize(
    ("decode", "prefill"),
    [(16, 16), (8, 16), (32, 8), (16, 32)],
    ids=lambda size: f"blocks{size}",
)
async def test_remote_and_local_prefill_give_the_same_answer(
    checkpoint: Path, tmp_path: Path, disaggregate: str, decode: int, prefill: int
) -> None:
    cluster = LocalCluster(
        checkpoint,
        tmp_path,
        decode=[{"block_size": decode}],
        prefill=[{"block_size": prefill}],
        disaggregate=disaggregate,
    )
    async with cluster:
        for number, length in enumerate([1, 5, 16, 40, 100]):
            prompt = prompt_of(number, length)
            answer = await cluster.generate(greedy(prompt, 20))
            assert answer.is_complete
            assert answer.token_ids == expected(prompt, 20)
        counters = cluster.decode[0].counters
        assert counters["hand_over_recomputes"] == 0
        assert counters["hand_overs_received"] == (5 if disaggregate == "always" else 0)


@pytest.mark.parametrize("disaggregate", ["always", "never"])
async def test_an_answer_whose_last_slot_is_the_pool_s_last_is_given(
    checkpoint: Path, tmp_path: Path, disaggregate: str
) -> None:
    """The last token is drawn from what stands before it: it needs no slot of its own."""
    small = {"num_blocks": 4, "block_size": 16}
    cluster = LocalCluster(
        checkpoint, tmp_path, decode=[small], prefill=[{}], disaggregate=disaggregate
    )
    async with cluster:
        for length, num in ((64, 1), (63, 2), (40, 25)):
            answer = await cluster.generate(greedy(prompt_of(length, length), num))
            assert answer.token_ids == expected(prompt_of(length, length), num)
        with pytest.raises(grpc.aio.AioRpcError, match="64 tokens and 2 more can never fit"):
            await cluster.generate(greedy(prompt_of(1, 64), 2))


@pytest.mark.parametrize("disaggregate", ["always", "never"])
async def test_every_prompt_has_the_logprobs_that_were_asked_for(
    checkpoint: Path, tmp_path: Path, disaggregate: str
) -> None:
    async with LocalCluster(checkpoint, tmp_path, disaggregate=disaggregate) as cluster:
        for length in (1, 2, 17):
            prompt = prompt_of(length, length)
            asked = greedy(prompt, 3, logprobs=pb.LogprobOptions(prompt_top=0))
            rows = (await cluster.generate(asked)).messages[0].accepted.prompt_logprobs
            assert [row.token_id for row in rows] == prompt
            assert [row.HasField("logprob") for row in rows] == [False] + [True] * (length - 1)
            unasked = await cluster.generate(greedy(prompt, 3))
            assert not unasked.messages[0].accepted.prompt_logprobs


async def test_the_stream_says_what_really_happened(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, disaggregate="always") as cluster:
        prompt = prompt_of(1, 70)
        first = await cluster.generate(greedy(prompt, 6, request_id="one"))
        again = await cluster.generate(greedy(prompt, 6, request_id="two"))
        accepted = first.messages[0].accepted
        assert (accepted.request_id, accepted.prompt_tokens) == ("one", 70)
        assert (accepted.decode_worker, accepted.prefill_worker) == ("decode-0", "prefill-0")
        assert accepted.cached_tokens == 0
        assert again.messages[0].accepted.cached_tokens == 64
        assert [m.HasField("accepted") for m in first.messages].count(True) == 1
        finished = first.messages[-1].finished
        assert finished.usage.completion_tokens == 6
        assert finished.choices[0].reason == pb.FINISH_REASON_LENGTH
        assert finished.timeline.transferred_bytes == 70 * 2 * 2 * 8
        assert again.messages[-1].finished.timeline.transferred_bytes == 6 * 2 * 2 * 8
        indices = [d.index for m in first.messages for d in m.deltas]
        assert indices[0] == 0
        assert indices == sorted(indices)


@pytest.mark.parametrize("disaggregate", ["always", "never"])
async def test_several_choices_share_one_prompt(
    checkpoint: Path, tmp_path: Path, disaggregate: str
) -> None:
    async with LocalCluster(checkpoint, tmp_path, disaggregate=disaggregate) as cluster:
        prompt = prompt_of(3, 37)
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=prompt),
            sampling=pb.SamplingParams(temperature=1.0, seed=9),
            stop=pb.LengthAndStop(max_tokens=8, ignore_eos=True),
            n=3,
        )
        answer = await cluster.generate(request)
        for choice in range(3):
            deltas = [d for m in answer.messages for d in m.deltas if d.choice == choice]
            ids = [i for delta in deltas for i in delta.token_ids]
            assert ids == expected(prompt, 8, seed=9, temperature=1.0, choice=choice)
        computed = [r.worker.scheduler.counters()["computed_tokens"] for r in cluster.workers]
        assert sum(computed) == 37 + 3 * 7


@pytest.mark.slow
async def test_many_requests_at_once_in_too_little_memory(checkpoint: Path, tmp_path: Path) -> None:
    cluster = LocalCluster(
        checkpoint, tmp_path, decode=[{"num_blocks": 14}], prefill=[{"num_blocks": 24}]
    )
    async with cluster:
        prompts = [prompt_of(i, 20 + i) for i in range(12)]
        answers = await asyncio.gather(*(cluster.generate(greedy(p, 60)) for p in prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.token_ids == expected(prompt, 60)
        assert cluster.decode[0].worker.scheduler.counters()["preemptions"] > 0


async def test_a_local_prefill_has_its_times_and_preemptions_in_the_timeline(
    checkpoint: Path, tmp_path: Path
) -> None:
    cluster = LocalCluster(checkpoint, tmp_path, decode=[{"num_blocks": 14}], prefill=[])
    async with cluster:
        prompts = [prompt_of(i, 20 + i) for i in range(12)]
        answers = await asyncio.gather(*(cluster.generate(greedy(p, 60)) for p in prompts))
        timelines = [answer.messages[-1].finished.timeline for answer in answers]
        assert all(timeline.prefill_seconds > 0 for timeline in timelines)
        assert max(timeline.queue_seconds for timeline in timelines) > 0
        counted = cluster.decode[0].worker.scheduler.counters()["preemptions"]
        assert sum(timeline.preemptions for timeline in timelines) == counted > 0


async def test_siblings_wait_for_the_prefix_in_progress(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, disaggregate="always") as cluster:
        shared = prompt_of(1, 96)
        cluster.prefill[0].gate.close()
        calls = [asyncio.create_task(cluster.generate(greedy([*shared, i], 4))) for i in range(6)]
        await cluster.until(lambda: cluster.prefill[0].worker.scheduler.load().num_waiting == 5)
        cluster.prefill[0].gate.open()
        answers = await asyncio.gather(*calls)
        cached = sorted(answer.messages[0].accepted.cached_tokens for answer in answers)
        assert cached == [0, 96, 96, 96, 96, 96]
        assert [a.token_ids for a in answers] == [expected([*shared, i], 4) for i in range(6)]


async def test_a_stop_token_ends_the_answer_and_its_hand_over(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, disaggregate="always") as cluster:
        prompt = prompt_of(5, 50)
        first = expected(prompt, 1)[0]
        request = greedy(prompt, 9)
        request.stop.stop_token_ids.append(first)
        answer = await cluster.generate(request)
        assert answer.token_ids == [first]
        finish = answer.messages[-1].finished.choices[0]
        assert (finish.reason, finish.stop_token_id) == (pb.FINISH_REASON_STOP, first)
        await cluster.idle()


async def test_prompt_logprobs_compute_every_position(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, disaggregate="always") as cluster:
        prompt = prompt_of(5, 50)
        await cluster.generate(greedy(prompt, 2))
        request = greedy(prompt, 2, logprobs=pb.LogprobOptions(top=1, prompt_top=1))
        answer = await cluster.generate(request)
        accepted = answer.messages[0].accepted
        assert accepted.cached_tokens == 0
        assert [p.token_id for p in accepted.prompt_logprobs] == prompt
        assert not accepted.prompt_logprobs[0].HasField("logprob")
        assert len([p for m in answer.messages for d in m.deltas for p in d.logprobs]) == 2


async def test_without_overlap_nothing_is_written_before_the_prompt_is_computed(
    checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"overlap": False, "max_batch_tokens": 16}
    cluster = LocalCluster(checkpoint, tmp_path, prefill=[settings], disaggregate="always")
    async with cluster:
        prefill, me = cluster.prefill[0], cluster.decode[0].worker.member.worker
        peer = await prefill.worker.parts.pairs.connect(me)
        computed: list[float] = []  # at each write, as far as the scheduler knows
        write = peer.write

        def write_and_look(*what: Any, **how: Any) -> Any:
            computed.append(prefill.worker.scheduler.counters()["computed_tokens"])
            return write(*what, **how)

        peer.write = write_and_look
        prompt = prompt_of(6, 50)
        answer = await cluster.generate(greedy(prompt, 8))
        assert answer.token_ids == expected(prompt, 8)
        assert computed == [50, 50]  # one write a layer
