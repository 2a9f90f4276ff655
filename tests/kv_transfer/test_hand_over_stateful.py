"""Random lives of many hand-overs on the real ends, with faults in their writes and restarts of
either process: nothing leaks, what is verified is what was sent, and no block that is in use or
free changes."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cluster.errors import TransferFailed
from cluster.types import KvLayout, Written
from kv_transfer.geometry import spans
from kv_transfer.incoming import Reservation, ReservationTable
from kv_transfer.memory_transport import MemoryNetwork, MemoryTransport
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.span_copy import Bytes, SpanCopier
from kv_transfer.transfer import State
from kv_transfer.transport import Landed
from tests.kv_transfer.faulty_transport import Fault, FaultPlan, FaultyTransport
from tests.kv_transfer.manual_timers import ManualTimers

NUM_BLOCKS = 12
SOURCE = KvLayout(num_layers=2, num_blocks=6, block_size=8, num_kv_heads=1, head_dim=4)
LAYOUT = KvLayout(num_layers=2, num_blocks=NUM_BLOCKS, block_size=4, num_kv_heads=1, head_dim=4)
SOURCE_BLOCKS = [4, 1, 3]
FAULTS = [fault for fault in Fault if fault is not Fault.STALL]  # the gate stalls


@dataclass(eq=False)
class Request:
    """A hand-over with both its ends."""

    outgoing: OutgoingTransfer
    reservation: Reservation
    writer: "WriterProcess"
    receiver: str
    blocks: list[int]
    is_in_scope: bool = True


@dataclass(eq=False)
class WriterProcess:
    name: str
    transport: FaultyTransport
    memory: Bytes
    is_open: bool = True
    outgoings: list[OutgoingTransfer] = field(default_factory=list)


class HandOvers(RuleBasedStateMachine):
    requests: Bundle[Request] = Bundle("requests")
    can_revoke = False

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.timers = ManualTimers()
        self.network = MemoryNetwork(revokes=self.can_revoke)
        self.free: dict[int, Bytes] = {}  # block -> what it holds, and must until it is lent
        self.used: dict[int, Bytes] = {}  # the same, of what was verified
        self.open: list[Request] = []
        self.num_writers = 0
        self.num_receivers = 0
        self.retired: list[FaultyTransport | MemoryTransport | ReservationTable] = []

    def run(self, steps: Coroutine[Any, Any, None]) -> None:
        async def then_settle() -> None:
            await steps
            await self.settle()

        self.runner.run(then_settle())

    async def settle(self) -> None:
        """Until the writer's threads have nothing to do but wait at the gate."""
        writer = self.writer
        pending = [write for outgoing in writer.outgoings for write in outgoing._pending]
        if writer.is_open:
            await asyncio.to_thread(wait, pending)
        else:
            await asyncio.to_thread(self.until_held_or_done, writer.transport, pending)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def until_held_or_done(self, transport: FaultyTransport, pending: list[Future[Landed]]) -> None:
        """A revoked write fails before it comes to the gate."""
        while not transport.held.is_set() and not all(write.done() for write in pending):
            transport.held.wait(0.001)

    @initialize()
    def start(self) -> None:
        async def steps() -> None:
            self.start_receiver()
            self.start_writer()

        self.run(steps())

    def start_receiver(self) -> None:
        """With another pool, and all of it free; epochs begin anew."""
        self.num_receivers += 1
        name = f"receiver-{self.num_receivers}"
        self.pool = self.network.pool(name, LAYOUT.pool_bytes)
        self.receiver = MemoryTransport(self.network, self.pool)

        def released(blocks: tuple[int, ...]) -> None:
            if self.pool.incarnation == name:
                self.released(blocks)

        self.table = ReservationTable(self.pool, LAYOUT, on_release=released, timers=self.timers)
        self.free = {block: self.contents(block).copy() for block in range(NUM_BLOCKS)}
        self.used = {}

    def start_writer(self) -> None:
        self.num_writers += 1
        name = f"writer-{self.num_writers}"
        pool = self.network.pool(name, SOURCE.pool_bytes)
        pool.memory[:] = np.random.default_rng(self.num_writers).integers(1, 255, pool.num_bytes)
        inner = MemoryTransport(self.network, pool)
        self.writer = WriterProcess(name, FaultyTransport(inner), pool.memory)

    def released(self, blocks: tuple[int, ...]) -> None:
        assert self.free.keys().isdisjoint(blocks)
        assert self.used.keys().isdisjoint(blocks)
        self.free.update({block: self.contents(block).copy() for block in blocks})

    def contents(self, block: int) -> Bytes:
        return self.pool.memory.reshape(LAYOUT.num_layers, 2, NUM_BLOCKS, -1)[:, :, block]

    @rule(target=requests, tokens=st.integers(1, 20), skipped=st.integers(0, 2))
    def begin(self, tokens: int, skipped: int) -> Request | None:
        num_blocks = -(-tokens // LAYOUT.block_size)
        if len(self.free) < num_blocks or skipped * LAYOUT.block_size >= tokens:
            return None
        blocks = sorted(self.free)[:num_blocks]
        made: list[Request] = []

        async def steps() -> None:
            outgoing = OutgoingTransfer(
                layout=SOURCE,
                blocks=SOURCE_BLOCKS,
                num_tokens=tokens,
                timers=self.timers,
            )
            self.writer.outgoings.append(outgoing)
            start = skipped * LAYOUT.block_size
            reservation = self.table.reserve(
                blocks,
                start,
                tokens,
                lease_s=2.0,
                peer=await self.receiver.connect(self.writer.name),
            )
            for block in reservation.blocks:
                del self.free[block]
            lent = list(reservation.blocks)
            made.append(Request(outgoing, reservation, self.writer, self.pool.incarnation, lent))

        self.run(steps())
        self.open.append(made[0])
        return made[0]

    def lives(self, request: Request | None) -> bool:
        return (
            request is not None
            and request.writer is self.writer
            and request.receiver == self.pool.incarnation
        )

    @rule(request=requests)
    def grant(self, request: Request | None) -> None:
        async def steps() -> None:
            assert request is not None
            peer = await self.writer.transport.connect(self.pool.incarnation)
            request.outgoing.grant(request.reservation.grant, peer, LAYOUT)

        if self.lives(request):
            self.run(steps())

    @rule(request=requests, layer=st.integers(-1, 1), tokens=st.integers(1, 24))
    def compute(self, request: Request | None, layer: int, tokens: int) -> None:
        async def steps() -> None:
            assert request is not None
            if layer < 0:
                request.outgoing.computed_all(tokens)
            else:
                request.outgoing.computed(layer, tokens)

        if self.lives(request):
            self.run(steps())

    @rule(request=requests, which=st.sampled_from(["stop", "renew", "renewed"]))
    def tell(self, request: Request | None, which: str) -> None:
        async def steps() -> None:
            assert request is not None
            if which == "stop":
                request.outgoing.stop("failed")
            elif which == "renew":
                request.outgoing.renew(request.reservation.epoch)
            else:
                request.reservation.renew()

        if self.lives(request):
            self.run(steps())

    @rule(request=requests)
    def finish(self, request: Request | None) -> None:
        """`written`, or the writer's failure, reaches the receiver."""
        if request is None or not request.is_in_scope or not request.outgoing.is_closed:
            return

        async def steps() -> None:
            try:
                written = await request.outgoing.landed()
            except TransferFailed as error:
                request.reservation.writer_closed(str(error))
            else:
                await self.verified(request, written)

        self.run(steps())

    async def verified(self, request: Request, written: Written) -> None:
        reservation = request.reservation
        try:
            await reservation.verify(written)
        except TransferFailed:
            assert reservation.failure, "a complete hand-over was refused without a reason"
        else:
            self.check_content(request)
            self.used.update({block: self.contents(block).copy() for block in reservation.blocks})
            self.leave_scope(request)

    def check_content(self, request: Request) -> None:
        """Byte for byte what the writer has, whatever befell its writes."""
        grant, copier = request.reservation.grant, SpanCopier()
        for layer in range(LAYOUT.num_layers):
            sent = spans(SOURCE, layer, SOURCE_BLOCKS, grant.start, grant.stop)
            here = spans(LAYOUT, layer, grant.blocks, grant.start, grant.stop)
            arrived = copier.digest(self.pool.memory, here)
            assert arrived == copier.digest(request.writer.memory, sent)

    @rule(request=requests)
    def leave(self, request: Request | None) -> None:
        async def steps() -> None:
            if request is not None and request.is_in_scope:
                self.leave_scope(request)

        self.run(steps())

    def leave_scope(self, request: Request) -> None:
        request.is_in_scope = False
        request.reservation.__exit__(None, None, None)

    @rule(request=consumes(requests))
    def fence(self, request: Request | None) -> None:
        """The receiver asks; the writer answers when its last write has ended."""

        async def steps() -> None:
            assert request is not None
            request.outgoing.stop("fenced")
            if self.writer.is_open:
                await request.outgoing.closed()
                request.reservation.writer_closed("fenced")

        if self.lives(request):
            self.run(steps())

    @rule(seconds=st.sampled_from([0.5, 1.9, 5.0]))
    def wait(self, seconds: float) -> None:
        async def steps() -> None:
            self.timers.advance(seconds)

        self.run(steps())

    @rule()
    def move_gate(self) -> None:
        async def steps() -> None:
            self.writer.is_open = not self.writer.is_open
            if self.writer.is_open:
                self.writer.transport.open_gate()
            else:
                self.writer.transport.close_gate()

        self.run(steps())

    @rule()
    def kill_writer(self) -> None:
        async def steps() -> None:
            self.network.kill(self.writer.name)
            self.retired.append(self.writer.transport)
            self.start_writer()

        self.run(steps())

    @rule(fault=st.sampled_from(FAULTS), share=st.sampled_from([0.3, 1.0]), seed=st.integers(0, 9))
    def disturb(self, fault: Fault, share: float, seed: int) -> None:
        plan = FaultPlan(shares={fault: share}, seed=seed, delay_s=0.0)
        self.writer.transport.disturb(self.pool.incarnation, plan, self.writer.memory)

    @rule(tokens=st.integers(1, 20), fault=st.sampled_from([None, *FAULTS]))
    def hand_over_at_once(self, tokens: int, fault: Fault | None) -> None:
        """What the rules do one by one, undisturbed or with each write hit."""
        shares = {} if fault is None else {fault: 1.0}
        plan = FaultPlan(shares=shares, delay_s=0.0)
        self.writer.transport.disturb(self.pool.incarnation, plan, self.writer.memory)
        request = self.begin(tokens, 0)
        self.grant(request)
        self.compute(request, -1, tokens)
        self.finish(request)

    @rule()
    def restart_receiver(self) -> None:
        async def steps() -> None:
            self.network.kill(self.pool.incarnation)
            self.retired += [self.receiver, self.table]
            for request in self.open:
                request.is_in_scope = False  # its caller is dead, too
            self.start_receiver()

        self.run(steps())

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def drop_used(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.used)))
        self.free[block] = self.used.pop(block)

    @invariant()
    def accounts_are_right(self) -> None:
        if self.num_writers:
            self.table.check()
            held = self.table.num_held_blocks
            assert len(self.free) + len(self.used) + held == NUM_BLOCKS

    @invariant()
    def blocks_that_are_not_lent_do_not_change(self) -> None:
        for block, expected in (self.used | self.free).items():
            assert np.array_equal(self.contents(block), expected)

    def teardown(self) -> None:
        async def steps() -> None:
            for transport in (*self.retired, self.writer.transport):
                if isinstance(transport, FaultyTransport):
                    transport.open_gate()
            for request in self.open:
                if request.is_in_scope:
                    self.leave_scope(request)
                request.outgoing.stop("teardown")
                await request.outgoing.closed()
                if request.receiver == self.pool.incarnation:
                    request.reservation.writer_closed("teardown")
            assert self.table.num_held_blocks == 0, "a block leaked"
            self.table.close()

        try:
            if self.num_writers:
                self.writer.is_open = True
                self.run(steps())
                self.blocks_that_are_not_lent_do_not_change()
                self.accounts_are_right()
        finally:
            if self.num_writers:
                for end in (*self.retired, self.writer.transport, self.table, self.receiver):
                    end.close()
            self.runner.close()


class RevocableHandOvers(HandOvers):
    can_revoke = True


@pytest.mark.slow
@pytest.mark.parametrize("machine", [HandOvers, RevocableHandOvers])
def test_random_lives_leak_nothing(machine: type[HandOvers]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.prove
@pytest.mark.parametrize("machine", [HandOvers, RevocableHandOvers])
def test_many_random_lives_leak_nothing(machine: type[HandOvers]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=1000,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_random_lives_find_bytes_that_nobody_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard for the faults: with the digest's word taken for granted, one is soon used."""
    monkeypatch.setattr(ReservationTable, "_first_wrong", lambda *_: None)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            HandOvers,
            settings=settings(
                max_examples=100,
                stateful_step_count=40,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                print_blob=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_both_states_of_success_are_reachable() -> None:
    """A guard for the rules above: an undisturbed life ends verified."""
    machine = HandOvers()
    machine.start()
    request = machine.begin(9, 0)
    machine.grant(request)
    machine.compute(request, -1, 9)
    machine.finish(request)
    assert request is not None
    assert request.reservation.state is State.VERIFIED
    assert len(machine.used) == 3
    machine.teardown()
