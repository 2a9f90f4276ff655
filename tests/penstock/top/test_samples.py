"""A page as Prometheus reads it, or none."""

import pytest

from penstock.cli.top.samples import NotMetrics, label, labels_of, samples, value
from tests.penstock.top.told import page, series


def test_our_series_are_read_by_name_and_labels() -> None:
    found = samples(
        page(
            "decode",
            {
                series("penstock_requests_running"): 3,
                series("penstock_transfer_bytes", peer="p 1", direction="sent"): 5e9,
                series("penstock_transfer_bytes", peer="p 2", direction="received"): 1,
            },
        )
        + "vllm:num_requests_running 3.0\n"
    )
    assert value(found, "penstock_requests_running") == 3
    assert value(found, "penstock_transfer_bytes_total") == 5e9 + 1
    assert value(found, "penstock_transfer_bytes_total", peer="p 1") == 5e9
    assert value(found, "penstock_transfer_bytes_total", peer="p 3") is None
    assert label(found, "penstock_build_info", "part") == "decode"
    assert not [name for name in found if name.startswith("vllm")]


def test_labels_are_unescaped_and_can_be_shown_on_a_terminal() -> None:
    written = r'a="say \"x\"",b="back\\slash",c="two\nlines",d="' + "\x1b[2J" + '"}'
    assert labels_of(written) == {
        "a": 'say "x"',
        "b": "back\\slash",
        "c": "two?lines",
        "d": "?[2J",
    }


def test_what_is_no_number_is_not_shown() -> None:
    found = samples(page("decode", {}) + "penstock_a NaN\npenstock_b +Inf\npenstock_c 2\n")
    assert [value(found, f"penstock_{name}") for name in "abc"] == [None, None, 2]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no process of Penstock"),
        ("<html>not here</html>", "no process of Penstock"),
        ("python_info 1.0\n", "no process of Penstock"),
        ("penstock_requests_total many\n", "no sample"),
        ("penstock_requests_total\n", "no sample"),
    ],
)
def test_a_page_of_somebody_else_is_refused_with_why(text: str, why: str) -> None:
    with pytest.raises(NotMetrics, match=why):
        samples(text)
