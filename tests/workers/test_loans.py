"""The contract of a loan of KV, for every lender: a prompt that is computed, a prefix that is
cached, a pattern. Whatever either end does, no block is lost and no answer is wrong."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import PenstockError
from kv_transfer.doors import DOORS
from kv_transfer.incoming import Reservation
from tests.workers.answers import expected
from tests.workers.fetching import PROMPT, counted, ids
from tests.workers.lending import LEASE_S, borrow, cluster_of, lender_of
from tests.workers.loan_ends import LENDERS, Said, ScriptedLender, borrower
from tests.workers.local_cluster import Running

LAST = {"prompt": ["tokens", "written"], "prefix": ["written"], "pattern": ["written"]}

# Not NCCL: it moves what lies on devices.
PROVED = [pytest.param(name, marks=pytest.mark.prove) for name in DOORS if name != "nccl"]
every_lender = pytest.mark.parametrize("what", LENDERS)


# -- a lender, and a borrower that is not as it should be ----------------------------------------


@pytest.mark.parametrize("door", ["memory", *PROVED])
@every_lender
async def test_what_is_granted_is_written_and_both_let_go(
    checkpoint: Path, tmp_path: Path, what: str, door: str
) -> None:
    async with cluster_of(checkpoint, tmp_path, door, lease_s=2.0) as cluster:
        lender = await lender_of(cluster, what)
        async with borrower(what, lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            assert await loan.found() >= 96
            await loan.grant()
            assert await loan.heard_until("written") == LAST[what]
            assert await loan.heard_until("end") == ["end"], "written is the last word"
        await asyncio.wait_for(cluster.idle(), 2.0)


@every_lender
async def test_a_grant_may_be_late_while_its_borrower_lives(
    checkpoint: Path, tmp_path: Path, what: str
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        lender = await lender_of(cluster, what)
        async with borrower(what, lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            await loan.found()
            for _ in range(6):
                await asyncio.sleep(LEASE_S / 3)
                await loan.live()
            await loan.grant()
            assert await loan.heard_until("written") == LAST[what]
        await asyncio.wait_for(cluster.idle(), 2.0)


@every_lender
async def test_a_borrower_that_says_nothing_is_given_up(
    checkpoint: Path, tmp_path: Path, what: str
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        lender = await lender_of(cluster, what)
        async with borrower(what, lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            await loan.found()
            with pytest.raises(PenstockError):
                await asyncio.wait_for(loan.heard_until("written", "end"), 10 * LEASE_S)
            await asyncio.wait_for(cluster.idle(), 2.0)


@every_lender
async def test_a_second_grant_changes_nothing(checkpoint: Path, tmp_path: Path, what: str) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        lender, receiver = await lender_of(cluster, what), cluster.decode[1]
        lender.transport.close_gate()
        async with borrower(what, lender, receiver) as loan:
            await loan.start(PROMPT)
            await loan.found()
            await loan.grant()
            await asyncio.to_thread(lender.transport.held.wait, 10)
            await loan.grant()
            first, second = loan.reservations
            before = _bytes_of(receiver, second)
            await loan.live(epoch=first.epoch)
            lender.transport.open_gate()
            assert await loan.heard_until("written") == LAST[what]
            assert _bytes_of(receiver, second) == before
            assert _bytes_of(receiver, first) != before
        await asyncio.wait_for(cluster.idle(), 2.0)


@every_lender
async def test_a_borrower_that_leaves_before_it_grants_costs_no_block(
    checkpoint: Path, tmp_path: Path, what: str
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        lender = await lender_of(cluster, what)
        async with borrower(what, lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            await loan.found()
        await asyncio.wait_for(cluster.idle(), 2.0)


@every_lender
async def test_more_than_was_found_is_not_written(
    checkpoint: Path, tmp_path: Path, what: str
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        lender = await lender_of(cluster, what)
        async with borrower(what, lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            await loan.found()
            await loan.grant(5)
            with pytest.raises(PenstockError, match="grant is wrong"):
                await loan.heard_until("written", "end")
        await asyncio.wait_for(cluster.idle(), 2.0)


async def test_a_grant_for_what_was_not_found_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """A queued prompt has nothing to write yet; a prefix is found before anything is heard."""
    async with cluster_of(checkpoint, tmp_path) as cluster:
        [lender] = cluster.prefill
        lender.gate.close()
        async with (
            borrower("prompt", lender, cluster.decode[1]) as first,
            borrower("prompt", lender, cluster.decode[1]) as loan,
        ):
            await first.start(PROMPT[:30])
            await asyncio.to_thread(lender.gate.reached.wait, 10)
            await loan.start(PROMPT)
            loan.num_found = 96
            await loan.grant()
            with pytest.raises(PenstockError, match="cannot take 'grant'"):
                await loan.heard_until("written", "end")
        lender.gate.open()
        await asyncio.wait_for(cluster.idle(), 2.0)


@pytest.mark.slow
@every_lender
async def test_a_borrower_that_falls_silent_while_a_write_stands_still(
    checkpoint: Path, tmp_path: Path, what: str
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        lender = await lender_of(cluster, what)
        lender.transport.close_gate()
        async with borrower(what, lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            await loan.found()
            await loan.grant()
            await asyncio.to_thread(lender.transport.held.wait, 10)
            await asyncio.sleep(2 * LEASE_S)
            lender.transport.open_gate()
            with pytest.raises(PenstockError, match="lease lapsed"):
                await loan.heard_until("written", "end")
        await asyncio.wait_for(cluster.idle(), 2.0)


def _bytes_of(running: Running, reservation: Reservation) -> bytes:
    """Its second block, in the first layer's keys."""
    size = running.worker.member.worker.fingerprint.layout.block_bytes
    begin = reservation.blocks[1] * size
    return bytes(running.pairs.pool.buffer[begin : begin + size])


# -- a borrower, and a lender that is not as it should be ----------------------------------------


async def ends_at_once(loan: Said) -> None:
    pass


async def never_speaks(loan: Said) -> None:
    await loan.left()


async def ends_before_it_writes(loan: Said) -> None:
    await loan.found()


async def ends_when_it_is_granted(loan: Said) -> None:
    await loan.found()
    await loan.granted()


async def finds_twice(loan: Said) -> None:
    await loan.found()
    await loan.granted()
    await loan.found()
    await loan.left()


async def writes_what_was_not_found(loan: Said) -> None:
    await loan.written()
    await loan.left()


async def writes_another_epoch(loan: Said) -> None:
    await loan.found()
    grant = await loan.granted()
    if loan.is_prompt:
        await loan.tokens(expected(PROMPT, 1)[0])
    await loan.written(epoch=grant.epoch + 7)
    await loan.left()


async def writes_nothing_and_says_it_did(loan: Said) -> None:
    await loan.found()
    grant = await loan.granted()
    if loan.is_prompt:
        await loan.tokens(expected(PROMPT, 1)[0])
    await loan.written(epoch=grant.epoch)


async def falls_silent_when_it_is_granted(loan: Said) -> None:
    await loan.found()
    await loan.granted()
    await loan.left()


async def draws_before_it_computes(loan: Said) -> None:
    await loan.tokens(expected(PROMPT, 1)[0])
    await loan.left()


SCRIPTS = [
    ends_at_once,
    never_speaks,
    ends_before_it_writes,
    ends_when_it_is_granted,
    finds_twice,
    writes_what_was_not_found,
    writes_another_epoch,
    writes_nothing_and_says_it_did,
    falls_silent_when_it_is_granted,
    draws_before_it_computes,
]


def name(script: Callable[[Said], Any]) -> str:
    return script.__name__.replace("_", " ")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=name)
@every_lender
async def test_a_lender_that_errs_costs_its_borrower_one_computation(
    checkpoint: Path, tmp_path: Path, what: str, script: Callable[[Said], Any]
) -> None:
    async with cluster_of(checkpoint, tmp_path, fetch_s=5.0) as cluster:
        receiver, other = cluster.decode
        async with ScriptedLender(other, script) as lender:
            if what == "pattern":
                with pytest.raises(PenstockError):
                    await borrow(what, lender.address, receiver)
            else:
                assert ids(await borrow(what, lender.address, receiver)) == expected(PROMPT, 8)
                failures = "hand_over_recomputes" if what == "prompt" else "fetch_failures"
                assert counted(receiver, failures) == 1
            assert lender.num_asked == 1
            await asyncio.wait_for(cluster.idle(), 5.0)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["prompt", "prefix"])
async def test_a_lender_that_falls_silent_is_left_alone(
    checkpoint: Path, tmp_path: Path, what: str
) -> None:
    """For a rest: one lease is what it costs, not one for every request."""
    async with cluster_of(checkpoint, tmp_path, fetch_s=5.0) as cluster:
        receiver, other = cluster.decode
        receiver.worker._transfers.rests._rest_s = 60.0
        async with ScriptedLender(other, falls_silent_when_it_is_granted) as lender:
            for number in range(3):
                prompt = [number, *PROMPT]
                answer = await borrow(what, lender.address, receiver, prompt)
                assert ids(answer) == expected(prompt, 8)
            assert lender.num_asked == 1
            await asyncio.wait_for(cluster.idle(), 5.0)
