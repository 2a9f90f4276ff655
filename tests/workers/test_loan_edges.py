"""Loans that end at the worst moment, or say what cannot be. No block is lost, nobody waits for
ever, and nobody is blamed for another."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InvalidRequest, PenstockError
from cluster.rpc import Call
from kv_transfer.incoming import Reservation
from penstock.v1 import worker_pb2 as pb
from tests.workers.answers import expected
from tests.workers.decoding import decode
from tests.workers.fetching import PROMPT, address, ids, request, told
from tests.workers.lending import borrow, cluster_of, lender_of
from tests.workers.loan_ends import LENDERS, Said, ScriptedLender, borrower

every_lender = pytest.mark.parametrize("what", LENDERS)


@every_lender
async def test_who_leaves_when_all_is_verified_loses_no_block(
    checkpoint: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster_of(checkpoint, tmp_path, lease_s=2.0) as cluster:
        lender, receiver = await lender_of(cluster, what), cluster.decode[1]
        verified = asyncio.Event()
        verify = Reservation.verify

        async def leaves_once_verified(reservation: Reservation, written: Any) -> None:
            await verify(reservation, written)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            verified.set()

        monkeypatch.setattr(Reservation, "verify", leaves_once_verified)
        asking = asyncio.create_task(borrow(what, address(lender), receiver))
        await asyncio.wait_for(verified.wait(), 5.0)
        asking.cancel()
        await asyncio.wait({asking})
        await asyncio.wait_for(cluster.idle(), 2.0)


async def test_a_lender_that_reads_nothing_is_not_waited_for(
    checkpoint: Path, tmp_path: Path
) -> None:
    """As one that is stopped: of a long prompt not all is taken in before it would read."""
    async with cluster_of(checkpoint, tmp_path) as cluster:
        receiver, other = cluster.decode
        async with DeafLender(other, never_speaks) as lender:
            asked = request()
            asked.prefill.CopyFrom(told(receiver, lender.address))
            asked.params.stop_strings.extend(["x" * 1000] * 1000)
            answer = await asyncio.wait_for(decode(receiver, asked), 30.0)
            assert ids(answer) == expected(PROMPT, 8)
            lender.ends.set()
        await asyncio.wait_for(cluster.idle(), 2.0)


async def test_who_waited_for_anothers_fetch_does_not_blame_its_own_source(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with cluster_of(checkpoint, tmp_path, fetch_s=0.3, lease_s=2.0) as cluster:
        receiver, other = cluster.decode
        is_granted = asyncio.Event()

        async def is_slow(loan: Said) -> None:
            await loan.found()
            await loan.granted()
            is_granted.set()
            await loan.left()

        async with ScriptedLender(other, is_slow) as slow:
            first = asyncio.create_task(borrow("prefix", slow.address, receiver))
            await asyncio.wait_for(is_granted.wait(), 5.0)
            innocent = address(cluster.prefill[0])
            second = asyncio.create_task(borrow("prefix", innocent, receiver))
            for answer in await asyncio.gather(first, second):
                assert ids(answer) == expected(PROMPT, 8)
        rests = receiver.worker._transfers.rests
        rests.check(cluster.prefill[0].worker.member.worker)
        with pytest.raises(PenstockError, match="stood still"):
            rests.check(other.worker.member.worker)


async def test_a_fetch_that_ends_as_its_borrower_leaves_costs_no_block(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        [lender] = cluster.prefill
        is_fetching = asyncio.Event()

        async def fetch(*_: Any) -> None:
            is_fetching.set()
            with suppress(asyncio.CancelledError):  # it was about to end
                await asyncio.Event().wait()

        monkeypatch.setattr(lender.worker._transfers.fetches, "fetch", fetch)
        async with borrower("prompt", lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            await asyncio.wait_for(is_fetching.wait(), 5.0)
        await asyncio.wait_for(cluster.idle(), 2.0)


@pytest.mark.parametrize("lease_s", [float("nan"), float("inf"), -1.0])
@every_lender
async def test_a_lease_that_cannot_be_is_refused(
    checkpoint: Path, tmp_path: Path, what: str, lease_s: float
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        lender = await lender_of(cluster, what)
        async with borrower(what, lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            await loan.found()
            await loan.grant(lease_s=lease_s)
            with pytest.raises(PenstockError, match="grant is wrong"):
                await loan.heard_until("written", "end")
        await asyncio.wait_for(cluster.idle(), 2.0)


WRONG: dict[str, pb.LendRequest] = {
    "nothing": pb.LendRequest(),
    "a renewal": pb.LendRequest(renew=pb.Renew(epoch=7)),
    "a grant": pb.LendRequest(grant=pb.Grant(epoch=2**64 - 1, stop_token=2**32 - 1)),
    "nobody borrows": pb.LendRequest(start=pb.LendStart(probe_tokens=1)),
    "half an address": pb.LendRequest(
        start=pb.LendStart(
            probe_tokens=1,
            borrower=pb.WorkerAddress(worker_id="w", incarnation="i", address="nowhere"),
        )
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_loan_that_begins_wrongly_is_refused(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        [lender] = cluster.prefill
        async with borrower("prompt", lender, cluster.decode[1]) as loan:
            await loan._call.send(WRONG[name])
            with pytest.raises(InvalidRequest):
                await loan.hear()


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"hashes": b"short"},
        {"prompt": pb.DecodeRequest(request_id="loan", prompt_token_ids=PROMPT)},
        {"prompt": pb.DecodeRequest(request_id="loan")},
    ],
    ids=["nothing", "half a hash", "a prompt without params", "an empty prompt"],
)
async def test_what_nobody_can_lend_is_refused(
    checkpoint: Path, tmp_path: Path, what: dict[str, Any]
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        [lender] = cluster.prefill
        start = pb.LendStart(borrower=address(cluster.decode[1]), **what)
        async with borrower("prompt", lender, cluster.decode[1]) as loan:
            await loan._call.send(pb.LendRequest(start=start))
            with pytest.raises(InvalidRequest):
                await loan.hear()


async def test_a_pattern_is_never_larger_than_what_is_free(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        [lender] = cluster.prefill
        start = pb.LendStart(borrower=address(cluster.decode[1]), probe_tokens=4_000_000_000)
        async with borrower("pattern", lender, cluster.decode[1]) as loan:
            await loan._call.send(pb.LendRequest(start=start))
            assert await loan.found() == 64 * 16
        await asyncio.wait_for(cluster.idle(), 2.0)


@pytest.mark.parametrize("again", ["start", "nothing"])
@every_lender
async def test_a_word_that_is_none_ends_the_loan(
    checkpoint: Path, tmp_path: Path, what: str, again: str
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        lender = await lender_of(cluster, what)
        async with borrower(what, lender, cluster.decode[1]) as loan:
            await loan.start(PROMPT)
            await loan.found()
            word = pb.LendRequest(start=pb.LendStart()) if again == "start" else pb.LendRequest()
            await loan._call.send(word)
            with pytest.raises(PenstockError, match="A loan has no"):
                await loan.heard_until("written", "end")
        await asyncio.wait_for(cluster.idle(), 2.0)


async def never_speaks(loan: Said) -> None:
    await loan.left()


class DeafLender(ScriptedLender):
    """Takes calls, and reads nothing of them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ends = asyncio.Event()

    async def _lend(self, call: Call) -> None:
        await self.ends.wait()
