"""Whether a request that came met its targets, while that is open and after its end."""

import pytest

from router.learned.traffic import Arrival, Traffic


def come(traffic: Traffic, **said: float) -> Arrival:
    arrival = Arrival(
        arrived_at=100.0,
        num_prompt_tokens=10,
        num_cached_tokens=0,
        num_output_tokens=5,
        target_ttft_s=2.0,
        target_itl_s=0.1,
    )
    for name, value in said.items():
        setattr(arrival, name, value)
    traffic.begin(arrival)
    return arrival


@pytest.mark.parametrize(
    ("said", "ended_s", "is_good"),
    [
        ({}, 101.0, None),  # its caller was gone before anything was late
        ({}, 103.0, False),  # waited in vain for longer than was promised
        ({"ttft_s": 1.0}, 109.0, None),
        ({"ttft_s": 3.0}, 109.0, False),
    ],
)
def test_who_gives_up_judges_nobody_but_for_what_was_late_already(
    said: dict[str, float], ended_s: float, is_good: bool | None
) -> None:
    traffic = Traffic()
    arrival = come(traffic, **said)
    arrival.ended_s = ended_s
    assert arrival.is_good(ended_s) is is_good
    assert arrival.is_good(ended_s + 1000.0) is is_good


def test_what_fails_is_missed_and_what_goes_on_is_open_until_it_is_late() -> None:
    traffic = Traffic()
    arrival = come(traffic)
    assert arrival.is_good(101.0) is None
    assert arrival.is_good(102.5) is False
    arrival.ended_s, arrival.is_lost = 101.0, True
    assert arrival.is_good(101.0) is False


def test_a_first_token_that_comes_at_once_is_one() -> None:
    """A virtual clock may stand still between the two."""
    traffic = Traffic()
    arrival = come(traffic, ttft_s=0.0)
    assert arrival.is_good(1000.0) is None
    arrival.itl_s = 0.05
    assert arrival.is_good(1000.0) is True
