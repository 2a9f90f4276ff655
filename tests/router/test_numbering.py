"""One bit a worker: who holds how much becomes a column in the order of the loads."""

import random

from cluster.types import CacheChange, GrainHash, Incarnation, WorkerId
from router.index import PrefixIndex
from router.numbering import Numbering
from router.speculation import Speculation
from tests.router.pool_samples import by_worker

A, B = WorkerId("a"), WorkerId("b")
LIFE = Incarnation("life")
PROMPT = tuple(GrainHash(bytes([number]) * 16) for number in range(8))


def test_a_column_says_what_each_holds_in_the_order_that_is_asked_for() -> None:
    """Whoever else holds something is left out, also when others come and go."""
    rng, numbering = random.Random(3), Numbering()
    workers = [WorkerId(f"w{number}") for number in range(150)]
    for _ in range(40):
        held = {worker: rng.randrange(1, 5) for worker in rng.sample(workers, 100)}
        ends = [
            (num, sum(numbering.bit_of(worker) for worker in held if held[worker] == num))
            for num in (1, 2, 3, 4)
        ]
        order = rng.sample(workers, rng.randrange(1, 150))
        positions = {worker: position for position, worker in enumerate(order)}
        for _ in range(2):
            column = numbering.column(ends, positions)
            assert column.tolist() == [held.get(worker, 0.0) for worker in order]
        assert by_worker(numbering, ends) == held
        for worker in rng.sample(workers, 10):
            numbering.free(numbering.give_up(worker))
        numbering.check(lost=0)
    assert numbering.column([], {A: 0, B: 1}).tolist() == [0.0, 0.0]


def test_what_is_expected_of_a_worker_outlives_a_snapshot_of_what_it_holds() -> None:
    """A snapshot takes a fresh bit, and the old one may be another worker's afterwards."""
    index = PrefixIndex(1 << 20)
    speculation = Speculation(index.numbering)
    index.replace(A, LIFE, PROMPT[:2])
    one = speculation.expect(A, PROMPT[:6], 0.0, start=2)
    index.replace(A, LIFE, PROMPT[:3])
    index.apply(A, LIFE, CacheChange(stored=PROMPT[7:]))  # sweeps
    index.replace(B, LIFE, PROMPT[:2])
    assert speculation.match(PROMPT, index.match(PROMPT), 0.0) == {A: 6}
    speculation.expect(B, PROMPT[:5], 0.0, start=2)
    assert speculation.match(PROMPT, index.match(PROMPT), 0.0) == {A: 6, B: 5}
    index.check()
    speculation.check()
    speculation.settle(one)
    assert speculation.match(PROMPT, index.match(PROMPT), 0.0) == {B: 5}
    speculation.check()


def test_a_worker_that_never_told_what_it_holds_leaves_no_bit_behind() -> None:
    index = PrefixIndex(1 << 20)
    speculation = Speculation(index.numbering)
    index.replace(B, LIFE, PROMPT)
    for number in range(50):
        worker = WorkerId(f"passing-{number}")
        speculation.expect(worker, PROMPT, 0.0)
        speculation.forget(worker)
        index.purge(worker)
        index.apply(B, LIFE, CacheChange(stored=PROMPT[:1]))  # sweeps
        index.check()
        speculation.check()
    assert index.numbering.bit_of(A) <= 1 << 3
