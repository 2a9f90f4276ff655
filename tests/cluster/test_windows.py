"""A window that slides: what fits, and how long to wait until it does."""

import pytest

from cluster.windows import Taken

WINDOW_S = 60.0


@pytest.mark.parametrize(
    ("before", "now", "elapsed_s", "amount", "most", "wait_s"),
    [
        (0, 0, 0, 10, 10, 0.0),
        (0, 9, 59, 1, 10, 0.0),
        (0, 10, 0, 1, 10, 66.0),  # this window must be the one before, and a tenth of it gone
        (0, 10, 40, 1, 10, 26.0),
        (0, 10, 40, 10, 10, 80.0),  # all of it gone
        (10, 0, 0, 1, 10, 6.0),
        (10, 0, 6, 1, 10, 0.0),
        (10, 5, 30, 0, 10, 0.0),
        (10, 5, 30, 1, 10, 6.0),
        (20, 0, 0, 10, 10, 60.0),
        (0, 0, 0, 11, 10, WINDOW_S),  # never
    ],
)
def test_it_fits_or_will(
    before: int, now: int, elapsed_s: float, amount: int, most: int, wait_s: float
) -> None:
    taken = Taken(before, now, elapsed_s)
    assert taken.wait_s(amount, most, WINDOW_S) == pytest.approx(wait_s)


def test_after_the_wait_it_fits() -> None:
    for before in range(0, 30, 7):
        for now in range(0, 30, 7):
            for elapsed_s in (0.0, 0.1, 29.0, 59.9):
                for amount in (1, 5, 20):
                    wait_s = Taken(before, now, elapsed_s).wait_s(amount, 20, WINDOW_S)
                    later = elapsed_s + wait_s + 1e-9
                    then = Taken(before, now, later)
                    if later >= WINDOW_S:
                        then = Taken(now, 0, later - WINDOW_S)
                    assert then.wait_s(amount, 20, WINDOW_S) <= 1e-6
