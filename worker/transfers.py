"""Moves KV into this worker's pool and out of it, put together. The same for both roles: any worker
may write into any other's pool, and read what another has cached."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from cluster.errors import StartupError
from cluster.lateness import AttentiveClock, Patience
from cluster.open_calls import OpenCalls
from cluster.rpc import Serve
from cluster.types import BlockId, KvLayout, LoadReport
from kv_transfer.incoming import ReservationTable
from worker.compute import Compute
from worker.config import WorkerConfig
from worker.drain import SETTLE_S
from worker.fences import Fences
from worker.fetch import Fetches
from worker.link_costs import LinkCosts
from worker.loans import Loans
from worker.pair_keeper import PairKeeper
from worker.parts import WorkerParts
from worker.peers import Peers
from worker.probe import Probes
from worker.rests import Rests
from worker.source import Source
from worker.writes import Writes

_MEASURED_BYTES = 4 << 20


class Transfers:
    """Owns what moves KV. Made inside the event loop, closed before the pairs are."""

    def __init__(
        self,
        config: WorkerConfig,
        parts: WorkerParts,
        compute: Compute,
        open_calls: OpenCalls,
        tasks: asyncio.TaskGroup,
        attention: AttentiveClock,
    ) -> None:
        self.attention = attention
        me, pairs = parts.member.worker, parts.pairs
        checks_content = config.digest == "content"
        self.peers = Peers(me, parts.secrets.cluster_token, parts.credentials, pairs, tasks)
        self._fences = Fences(me.incarnation, self.peers, tasks)
        self.table = ReservationTable(
            pairs.pool,
            me.fingerprint.layout,
            on_release=lambda blocks: compute.release([BlockId(b) for b in blocks]),
            on_abandoned=self._fences.ask,
            check_content=checks_content,
            stats=pairs.stats,
        )
        self.writes = Writes(me, self.peers, attention, digest=checks_content)
        self.link_costs = LinkCosts()
        self.rests = Rests(self.table, rest_s=config.lease_s)
        self.loans = Loans(
            peers=self.peers,
            table=self.table,
            writes=self.writes,
            rests=self.rests,
            clock=attention,
            lease_s=config.lease_s,
        )
        self.fetches = Fetches(
            me,
            compute,
            self.loans,
            self.rests,
            self.link_costs,
            limit_s=config.fetch_s,
        )
        self.source = Source(me, pairs.pool, compute, self.writes, self.loans, open_calls)
        self.probes = Probes(compute, self.loans, self.link_costs)
        self.keeper = PairKeeper(
            self.peers,
            self.probes,
            tasks,
            num_tokens=config.probe_tokens,
            num_measured_tokens=_num_measured_tokens(config, me.fingerprint.layout),
        )

    @property
    def rpcs(self) -> Mapping[str, Serve]:
        """Lists the RPCs of the service Worker."""
        return {
            "Lend": self.source.lend,
            "Fence": self.writes.fence,
            "Probe": self.probes.serve,
        }

    def load(self, report: LoadReport) -> LoadReport:
        """Adds what moved, and what may still be written."""
        return replace(
            report,
            num_quarantined_blocks=self.table.num_quarantined_blocks,
            pairs=self.peers.pairs.stats.reports(self.table.quarantined),
            links=self.link_costs.reports(),
            counters={**report.counters, **self._counters()},
        )

    def check(self) -> None:
        self.table.check()

    async def at_rest(self) -> None:
        """Returns when no other worker may write into our pool, nor we into another's."""
        await self.table.empty()
        await self.writes.all_closed()

    async def settle(self) -> None:
        """Settles before another life has our pool: returns when no KV moves any more, nor will.
        Raises StartupError where some may for too long: only the end of this process ends that."""
        self.keeper.close()
        try:
            async with Patience(SETTLE_S):
                await self.at_rest()
        except TimeoutError:
            raise StartupError(
                "This process cannot go on in another role, and ends: KV may still move into"
                f" {self.table.num_held_blocks} blocks of its pool, or out of it."
            ) from None

    async def close(self) -> None:
        self.keeper.close()
        self._fences.close()
        self.table.close()
        await self.peers.close()

    def _counters(self) -> dict[str, float]:
        return {
            **self.table.counters.as_dict(),
            "fetches": float(self.fetches.num_fetched),
            "fetched_tokens": float(self.fetches.num_tokens),
            "fetch_failures": float(self.fetches.num_failed),
            "lent_tokens": float(self.source.num_tokens),
            "pairs_up": float(self.keeper.num_up),
            "pairs_refused": float(self.keeper.num_refused),
        }


def _num_measured_tokens(config: WorkerConfig, layout: KvLayout) -> int:
    """Enough bytes to time, and never much of the pool."""
    enough = -(-_MEASURED_BYTES // (layout.pool_bytes // (layout.num_blocks * layout.block_size)))
    return min(enough, 16 * config.probe_tokens, layout.num_blocks * layout.block_size // 8)
