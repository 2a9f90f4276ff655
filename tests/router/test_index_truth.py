"""After whatever happened on the way, every index is the union of the workers' caches."""

import pytest

from tests.router.index_world import World

STEPS = 70


def run(seed: int) -> int:
    """One sequence, checked twice on the way and at its end. Returns how many gaps it had."""
    world = World(seed)
    for stop in (0.3, 0.6, 1.0):
        for _ in range(int(stop * STEPS)):
            world.step()
        world.quiesce()
        world.check()
    return world.num_gaps


@pytest.mark.slow
def test_after_any_sequence_the_index_is_the_union_of_the_caches() -> None:
    assert sum(run(seed) for seed in range(500)) > 100, "hardly anything went wrong"


@pytest.mark.prove
@pytest.mark.parametrize("part", range(10))
def test_after_ten_thousand_sequences_too(part: int) -> None:
    for seed in range(1000 * part + 500, 1000 * part + 1500):
        run(seed)
