"""Loans that end at the worst moment, or say what cannot be. No block is lost, nobody waits for
ever, and nobody is blamed for another."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kv_transfer.incoming import Reservation
from tests.workers.fetching import address
from tests.workers.lending import borrow, cluster_of, lender_of
from tests.workers.loan_ends import LENDERS

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
