"""A cached prefix is brought from another worker: the same answer, and only what is missing
moves. Whatever goes wrong with it, the prompt is computed."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.channel import open_channel
from cluster.errors import InvalidRequest
from cluster.types import Placement
from penstock.v1 import worker_pb2
from router import placer
from tests.kv_transfer.faulty_transport import FaultyTransport
from tests.router.fake_worker import TOKEN
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.decoding import decode
from tests.workers.fetching import (
    PROMPT,
    SLOT_BYTES,
    address,
    counted,
    ids,
    named,
    request,
    told,
    warm,
)
from tests.workers.local_cluster import LocalCluster


@pytest.mark.parametrize("here", [16, 8, 32], ids=lambda size: f"here{size}")
@pytest.mark.parametrize("there", [16, 8, 32], ids=lambda size: f"there{size}")
async def test_a_decode_worker_fetches_and_answers_the_same(
    checkpoint: Path, tmp_path: Path, here: int, there: int
) -> None:
    workers = [{"block_size": there}, {"block_size": here}]
    async with LocalCluster(checkpoint, tmp_path, decode=workers, prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        messages = await decode(receiver, request(source=source))
        assert ids(messages) == expected(PROMPT, 8)
        num_fetched = 99 // max(here, there) * max(here, there)
        assert counted(receiver, "fetched_tokens") == num_fetched
        assert messages[0].accepted.cached_tokens == num_fetched
        assert counted(receiver, "computed_tokens") == 100 - num_fetched + 7


@pytest.mark.slow
@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_a_prefill_worker_fetches_from_either_role(
    checkpoint: Path, tmp_path: Path, role: str
) -> None:
    workers = [{"block_size": 8}, {"block_size": 16}]
    async with LocalCluster(checkpoint, tmp_path, decode=workers, prefill=workers) as cluster:
        source = (cluster.decode if role == "decode" else cluster.prefill)[0]
        first = {} if role == "decode" else {"prefill": named(source)}
        await decode(cluster.decode[0], request(**first))
        asked = request(source=source, prefill=named(cluster.prefill[1]))
        messages = await decode(cluster.decode[1], asked)
        assert ids(messages) == expected(PROMPT, 8)
        assert messages[-1].finished.timeline.recomputes == 0
        assert messages[0].accepted.cached_tokens == 96
        assert counted(cluster.prefill[1], "fetched_tokens") == 96
        assert counted(source, "lent_tokens") >= 96


async def test_only_what_is_missing_moves(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        await warm(receiver, PROMPT[:40])
        before = counted(receiver, "transfer_bytes")
        messages = await decode(receiver, request(source=source))
        assert ids(messages) == expected(PROMPT, 8)
        assert counted(receiver, "fetched_tokens") == 96 - 32
        assert counted(receiver, "transfer_bytes") - before == (96 - 32) * SLOT_BYTES
        await decode(receiver, request(source=source))  # all of it is here now
        assert counted(receiver, "fetches") == 1


async def test_what_was_fetched_is_announced_and_lent_on(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}, {}], prefill=[]) as cluster:
        first, second, third = cluster.decode
        await warm(first)
        await decode(second, request(source=first))
        index = cluster.router.index
        await cluster.until(lambda: index.num_grains_of(second.name) == index.num_grains >= 6)
        messages = await decode(third, request(source=second))
        assert ids(messages) == expected(PROMPT, 8)
        assert counted(third, "fetched_tokens") == 96


async def test_requests_for_the_same_prefix_fetch_it_once(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        prompts = [[*PROMPT, number] for number in range(4)]
        answers = await asyncio.gather(
            *(decode(receiver, request(prompt, source=source)) for prompt in prompts)
        )
        assert [ids(answer) for answer in answers] == [expected(p, 8) for p in prompts]
        assert counted(receiver, "fetches") == 1
        assert counted(receiver, "fetched_tokens") == 96


async def test_who_comes_meanwhile_waits_for_the_prefix_that_is_being_fetched(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The router names no source then: it counts on what it has asked for."""
    async with LocalCluster(
        checkpoint, tmp_path, decode=[{}, {}], prefill=[], wrap_transport=FaultyTransport
    ) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        source.transport.close_gate()
        first = asyncio.create_task(decode(receiver, request(source=source)))
        await cluster.until(lambda: receiver.pool.num_held > 0)
        second = asyncio.create_task(decode(receiver, request([*PROMPT, 7])))
        await cluster.until(lambda: receiver.worker.open_calls.num == 2)
        source.transport.open_gate()
        assert ids(await first) == expected(PROMPT, 8)
        assert ids(await second) == expected([*PROMPT, 7], 8)
        assert counted(receiver, "computed_tokens") == (4 + 7) + (5 + 7)


async def test_a_source_that_has_nothing_or_is_gone_costs_no_answer(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        messages = await decode(receiver, request(source=source))
        assert ids(messages) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 0
        source.task.cancel()
        cluster.network.kill(source.worker.member.worker.incarnation)
        cluster.decode.remove(source)
        prompt = prompt_of(9, 60)
        messages = await decode(receiver, request(prompt, source=source))
        assert ids(messages) == expected(prompt, 8)
        assert counted(receiver, "fetch_failures") == 1


async def test_a_source_of_another_model_is_not_fetched_from(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        other = address(source)
        other.fingerprint.model_digest = "another"
        asked = request()
        asked.source.CopyFrom(told(receiver, other))
        assert ids(await decode(receiver, asked)) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 1
        assert counted(source, "lent_tokens") == 0


async def test_prompt_logprobs_fetch_nothing(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        messages = await decode(receiver, request(source=source, num_prompt_logprobs=0))
        assert messages[0].accepted.cached_tokens == 0
        assert len(messages[0].accepted.prompt_logprobs) == len(PROMPT)


def gated(checkpoint: Path, tmp_path: Path, **settings: Any) -> LocalCluster:
    return LocalCluster(
        checkpoint, tmp_path, decode=[{}, settings], prefill=[], wrap_transport=FaultyTransport
    )


@pytest.mark.slow
async def test_a_fetch_that_takes_too_long_is_given_up(checkpoint: Path, tmp_path: Path) -> None:
    async with gated(checkpoint, tmp_path, fetch_s=0.2) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        source.transport.close_gate()
        assert ids(await decode(receiver, request(source=source))) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 1
        lent = counted(source, "lent_tokens")
        other = prompt_of(8, 60)
        assert ids(await decode(receiver, request(other, source=source))) == expected(other, 8)
        assert counted(receiver, "fetch_failures") == 2
        assert counted(source, "lent_tokens") == lent > 0, "who stood still is left alone"
        # A write stands half-way: its blocks are nobody's until it has ended.
        source.transport.open_gate()
        await asyncio.wait_for(cluster.idle(), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_a_fetch_is_cancelled_with_its_request(
    checkpoint: Path, tmp_path: Path, role: str
) -> None:
    cluster = LocalCluster(checkpoint, tmp_path, decode=[{}, {}], wrap_transport=FaultyTransport)
    async with cluster:
        source, receiver = cluster.decode
        await warm(source)
        source.transport.close_gate()
        where = {"prefill": named(cluster.prefill[0])} if role == "prefill" else {}
        task = asyncio.create_task(decode(receiver, request(source=source, **where)))
        await asyncio.to_thread(source.transport.held.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        source.transport.open_gate()
        started = time.monotonic()
        await asyncio.wait_for(cluster.idle(), 1.0)
        assert time.monotonic() - started < 1.0


async def test_a_source_that_dies_half_way_costs_no_answer(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with gated(checkpoint, tmp_path) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        source.transport.close_gate()
        task = asyncio.create_task(decode(receiver, request(source=source)))
        await asyncio.to_thread(source.transport.held.wait, 10)
        source.task.cancel()
        cluster.network.kill(source.worker.member.worker.incarnation)
        cluster.decode.remove(source)
        assert ids(await task) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 1
        source.transport.open_gate()
        await asyncio.wait_for(cluster.idle(), 1.0)


@pytest.mark.slow
async def test_fetched_prefixes_never_block_each_other(checkpoint: Path, tmp_path: Path) -> None:
    """All of them are held by prompts none of which fits beside them."""
    small = {"num_blocks": 16, "max_sequences": 4}
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, small], prefill=[]) as cluster:
        source, receiver = cluster.decode
        prompts = [prompt_of(number, 150) for number in range(6)]
        for prompt in prompts:
            await warm(source, prompt[:50])
        async with asyncio.timeout(20):
            answers = await asyncio.gather(
                *(decode(receiver, request(prompt, 30, source=source)) for prompt in prompts)
            )
        assert [ids(answer) for answer in answers] == [expected(p, 30) for p in prompts]


async def test_a_placement_with_a_source_reaches_the_worker(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        choose = placer.place

        def place(*arguments: Any) -> Any:
            decision, state = choose(*arguments)
            placement = Placement(
                decode=receiver.name, prefill=None, source=source.name, num_source_tokens=96
            )
            return replace(decision, placement=placement), state

        monkeypatch.setattr(placer, "place", place)
        answer = await cluster.generate(greedy(PROMPT, 8))
        assert answer.token_ids == expected(PROMPT, 8)
        assert answer.messages[0].accepted.cached_tokens == 96


async def test_a_worker_that_drains_lends_nothing_any_more(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        source.gate.close()
        busy = asyncio.create_task(decode(source, request(prompt_of(9, 30))))
        await asyncio.to_thread(source.gate.reached.wait, 10)
        source.drain.set()
        await cluster.until(lambda: source.worker.open_calls.is_draining)
        assert ids(await decode(receiver, request(source=source))) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 1
        source.gate.open()
        assert ids(await busy) == expected(prompt_of(9, 30), 8)
        await source.task
        cluster.decode.remove(source)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (None, "begins with 'start'"),
        ({"hashes": b"1" * 16}, "worker address needs"),
        ({"borrower": True}, "'hashes' or 'probe_tokens'"),
        ({"borrower": True, "hashes": b"odd"}, "hashes"),
    ],
)
async def test_a_loan_that_makes_no_sense_is_refused_with_a_sentence(
    checkpoint: Path, tmp_path: Path, start: dict[str, Any] | None, words: str
) -> None:
    async with LocalCluster(checkpoint, tmp_path, prefill=[]) as cluster:
        message = worker_pb2.LendRequest()
        if start is not None:
            borrower = address(cluster.decode[0]) if "borrower" in start else None
            what = {"borrower": borrower, "hashes": start.get("hashes")}
            message.start.MergeFrom(worker_pb2.LendStart(**what))
            message.start.SetInParent()
        async with open_channel(cluster.decode[0].address, TOKEN) as channel:
            call = channel.exchange("penstock.v1.Worker", "Lend", timeout_s=5)
            async with call:
                await call.send(message)
                with pytest.raises(InvalidRequest, match=words):
                    await call.receive()
