"""Which policy is in force, as a value: every way that it changes."""

import json

import pytest

from cluster.errors import ConfigError
from router.policy_file.kind import POLICY
from router.rollout.history import MAX_CHANGES, Author
from router.rollout.rollout import Offer, Rollout, decode_rollout, encode_rollout
from tests.router.policy_texts import offer, policy_text

CANARY = "  canary: {traffic: 10%, duration: 60s}\n"


@pytest.fixture
def first() -> Rollout:
    return Rollout.begin(offer(1.0), 100.0)


def test_a_document_takes_effect_at_once_and_the_one_before_is_kept(first: Rollout) -> None:
    second = first.offered(offer(2.0), 200.0)
    assert (second.active.number, second.active.at_s) == (2, 200.0)
    assert second.active.text == policy_text(2.0)
    assert second.previous == first.active
    assert second.canary is None


def test_what_says_the_same_changes_nothing(first: Rollout) -> None:
    """Comments and written-out defaults do not count."""
    said = "# a comment\n" + policy_text(1.0)
    same = Offer(text=said, document=POLICY.parse(said), source="other")
    assert first.offered(same, 200.0) is first


@pytest.mark.parametrize("given", [offer(2.0, more=CANARY), offer(2.0, share=0.1)])
def test_a_document_with_a_canary_is_tried_out(first: Rollout, given: Offer) -> None:
    trying = first.offered(given, 200.0)
    assert trying.active == first.active
    assert trying.canary is not None
    assert trying.canary.number == 2
    assert trying.offered(given, 300.0) is trying
    promoted = trying.promoted(400.0, "it kept within its guards")
    assert (promoted.active.number, promoted.active.at_s) == (2, 400.0)
    assert promoted.previous == first.active
    assert promoted.canary is None


def test_a_rollback_ends_the_canary_first_and_then_returns_to_the_one_before(
    first: Rollout,
) -> None:
    trying = first.offered(offer(2.0), 200.0).offered(offer(3.0, share=0.2), 300.0)
    once = trying.rolled_back(400.0, "it is slow")
    assert (once.canary, once.active.number) == (None, 2)
    assert once.why == "The canary 3 was rolled back: it is slow."
    twice = once.rolled_back(500.0)
    assert (twice.active.number, twice.active.text) == (4, policy_text(1.0))
    assert twice.rolled_back(600.0).active.text == policy_text(2.0)  # and forth
    with pytest.raises(ConfigError, match="no policy to return to"):
        first.rolled_back(200.0)


def test_the_document_in_force_withdraws_the_canary(first: Rollout) -> None:
    """As when a file is changed back."""
    trying = first.offered(offer(2.0, share=0.5), 200.0)
    back = trying.offered(offer(1.0), 300.0)
    assert (back.active, back.canary) == (first.active, None)
    assert "withdrawn" in back.why


def test_numbers_are_never_given_twice(first: Rollout) -> None:
    trying = first.offered(offer(2.0, share=0.5), 200.0).rolled_back(300.0)
    again = trying.offered(offer(2.0, share=0.5), 400.0)
    assert again.canary is not None
    assert again.canary.number == 3
    replaced = again.offered(offer(5.0), 500.0)
    assert (replaced.active.number, replaced.canary) == (4, None)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 7.0])
def test_a_share_is_a_part(share: float) -> None:
    with pytest.raises(ConfigError, match=r"give more than 0 and less than 100"):
        offer(2.0, share=share)


def test_it_survives_the_store(first: Rollout) -> None:
    trying = first.offered(offer(2.0), 200.0).offered(offer(3.0, share=0.2), 300.0)
    assert decode_rollout(encode_rollout(trying), "the store") == trying


def test_what_a_later_release_adds_is_passed_over(first: Rollout) -> None:
    rollout = first.offered(offer(2.0), 200.0)
    rollout = rollout.recorded(first, Author(name="ana"), 200.0)
    said = json.loads(encode_rollout(rollout))
    for each in (said, said["active"], said["history"][0], said["history"][0]["author"]):
        each["mood"] = "blue"
    assert decode_rollout(json.dumps(said).encode(), "the store") == rollout


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80", "The store is no JSON"),
        (b"[" * 100_000, "The store is no JSON"),
        (b'{"active": 1}', "In The store"),
        (b" " * (1 << 20), "bytes, more than"),
    ],
)
def test_strangers_in_the_store_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        decode_rollout(data, "The store")


@pytest.mark.slow
def test_the_history_is_bounded_kept_with_the_rollout_and_the_latest_is_last(
    first: Rollout,
) -> None:
    rollout, ana = first, Author(name="ana@desk", address="127.0.0.1")
    for i in range(2 * MAX_CHANGES):
        changed = rollout.offered(offer(2.0 + i % 2), 200.0 + i)
        rollout = changed.recorded(rollout, ana, 200.0 + i)
    kept = decode_rollout(encode_rollout(rollout), "the store")
    assert kept == rollout
    assert len(kept.history) == MAX_CHANGES
    last = kept.history[-1]
    assert (last.number, last.at_s, last.author) == (kept.active.number, kept.active.at_s, ana)
    trying = rollout.offered(offer(9.0, share=0.1), 900.0).recorded(rollout, ana, 900.0)
    assert trying.canary is not None
    assert trying.history[-1].number == trying.canary.number
