"""What would have been enough is the same, whatever was rehearsed before."""

from itertools import product

from deploy.planner.direction import Counts
from deploy.planner.settings import Bounds
from deploy.planner.sizing import Sizing
from router.learned.reuse import SIZES
from simulator.rehearsal import Come
from simulator.setting import Setting

SIZES_ASKED = [Counts(*pair) for pair in product(range(4), range(1, 40))]


def sizing() -> Sizing:
    """One prompt of which each doubling of a cache holds a thousand tokens more."""
    held = tuple(1000 * at for at in range(len(SIZES)))
    come = Come(0.0, 30_000, 30_000, 1, 8.0, 0.1, held)
    return Sizing([come], Setting(num_prefill=1, num_decode=1), Bounds(), 0.95, float(SIZES[0]))


def test_the_order_in_which_sizes_are_looked_at_makes_no_difference() -> None:
    upwards, downwards = sizing(), sizing()
    ways = ((upwards, SIZES_ASKED), (downwards, SIZES_ASKED[::-1]))
    first, second = (
        {counts: one._with_caches(counts)[0].num_new for counts in asked} for one, asked in ways
    )
    assert first == second
    assert len(set(first.values())) > 5  # they are told apart
