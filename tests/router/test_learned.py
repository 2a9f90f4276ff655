"""What the router remembers of the requests it has placed: sessions, lengths, its own errors."""

import pytest

from cluster.errors import InvalidRequest
from cluster.types import RoutingHints, WorkerId
from router.learned.accuracy import Accuracy, Compared
from router.learned.lengths import AnswerKind, AnswerLengths
from router.policy import Policy, targets_of
from router.policy_settings import ServiceClass, SessionAffinity
from router.sessions import Sessions, session_id

CHAT, BATCH = ServiceClass(name="chat"), ServiceClass(name="batch", ttft_s=60.0, itl_s=1.0)
POLICY = Policy(classes=(CHAT, BATCH))
A, B = WorkerId("a"), WorkerId("b")


# Classes


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        (RoutingHints(), CHAT),
        (RoutingHints(service_class="batch"), BATCH),
        (
            RoutingHints(service_class="batch", ttft_budget_s=5.0),
            ServiceClass(name="batch", ttft_s=5.0, itl_s=1.0),
        ),
        (RoutingHints(ttft_budget_s=50.0, itl_budget_s=50.0), CHAT),
        (RoutingHints(itl_budget_s=0.1), ServiceClass(name="chat", itl_s=0.1)),
    ],
    ids=["the first", "by name", "narrowed", "never widened", "of tokens"],
)
def test_targets_are_those_of_the_class_narrowed_by_the_budgets(
    hints: RoutingHints, expected: ServiceClass
) -> None:
    assert targets_of(hints, POLICY) == expected


def test_an_unknown_class_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match="choose from 'chat', 'batch'") as caught:
        targets_of(RoutingHints(service_class="gold"), POLICY)
    assert caught.value.field == "service_class"


# Sessions


def test_a_session_remembers_its_last_worker_for_a_while() -> None:
    sessions, affinity = Sessions(), SessionAffinity(ttl_s=10.0)
    talk = session_id("default", "talk")
    sessions.remember(talk, A, 0.0, affinity)
    sessions.remember(talk, B, 5.0, affinity)
    assert sessions.worker(talk, 14.9, affinity) == B
    assert sessions.worker(talk, 15.0, affinity) is None
    assert sessions.worker(talk, 5.0, None) is None  # the policy of now has none


def test_tenants_do_not_share_sessions_and_no_key_is_no_session() -> None:
    sessions, affinity = Sessions(), SessionAffinity()
    sessions.remember(session_id("one", "talk"), A, 0.0, affinity)
    assert sessions.worker(session_id("two", "talk"), 0.0, affinity) is None
    assert session_id("one", "") is None
    sessions.remember(None, A, 0.0, affinity)
    assert len(sessions) == 1


def test_sessions_are_bounded_and_the_oldest_go_first() -> None:
    sessions, affinity = Sessions(), SessionAffinity(ttl_s=100.0, max_sessions=3)
    keys = [session_id("t", str(number)) for number in range(5)]
    for number in (0, 1, 2, 0, 3, 4):
        sessions.remember(keys[number], A, 0.0, affinity)
    kept = [number for number in range(5) if sessions.worker(keys[number], 0.0, affinity)]
    assert kept == [0, 3, 4]
    sessions.remember(keys[1], A, 200.0, affinity)  # the others have lapsed
    assert len(sessions) == 1


# Lengths


def test_answers_are_predicted_from_those_of_their_kind() -> None:
    lengths = AnswerLengths()
    short, long = AnswerKind("chat", "default"), AnswerKind("batch", "default")
    assert lengths.predicted(short, 1000) == 128.0
    for _ in range(1000):
        lengths.observe(short, 10)
        lengths.observe(long, 900)
    assert lengths.predicted(short, 1000) == pytest.approx(10, rel=0.4)
    assert lengths.predicted(long, 1000) == pytest.approx(900, rel=0.05)
    assert lengths.predicted(long, 64) == 64  # never above what was asked for
    assert lengths.mean == pytest.approx(455, rel=0.05)
    assert lengths.predicted(AnswerKind("chat", "another"), 1000) == 128.0


def test_what_is_typical_is_not_moved_by_few_long_answers() -> None:
    lengths, kind = AnswerLengths(), AnswerKind("chat", "default")
    assert lengths.typical(kind, 1000) == 128.0
    for length in [9, 13, 4000] * 5:
        lengths.observe(kind, length)
    assert lengths.typical(kind, 1000) == 128.0  # so few are not believed at once
    for length in [9, 13, 13, 19, 4000] * 100:
        lengths.observe(kind, length)
    assert lengths.typical(kind, 1000) == 13.0
    assert lengths.typical(kind, 8) == 8.0
    assert lengths.predicted(kind, 4000) > 700.0
    for _ in range(256):
        lengths.observe(kind, 900)
    assert lengths.typical(kind, 1000) == 900.0


def test_lengths_forget_and_have_quantiles() -> None:
    lengths, kind = AnswerLengths(), AnswerKind("chat", "default")
    assert lengths.quantiles(kind) is None
    for length in [5000] * 300 + list(range(1, 257)):
        lengths.observe(kind, length)
    assert lengths.quantiles(kind) == (128, 231, 254)


def test_kinds_are_bounded() -> None:
    lengths = AnswerLengths()
    for number in range(2000):
        lengths.observe(AnswerKind("chat", str(number)), 7)
    known = [n for n in range(2000) if lengths.quantiles(AnswerKind("chat", str(n))) is not None]
    assert known == list(range(2000 - 1024, 2000))


# Accuracy


def test_errors_are_told_apart_by_the_length_of_what_was_predicted() -> None:
    accuracy, none = Accuracy(), Compared(0, 0)
    for number in range(100):
        accuracy.first_token(Compared(0.020, 0.002), none, 0.0)  # a message more than predicted
        accuracy.first_token(Compared(2.0 + 0.02 * number, 2.0), none, 0.0)
    short, long = accuracy.ttft_errors(0.001, 1.0), accuracy.ttft_errors(5.0, 1.0)
    assert short is not None
    assert long is not None
    assert (short.p50, short.p99) == pytest.approx((10.0, 10.0))
    assert (long.p50, long.p90) == pytest.approx((1.49, 1.89))
    assert accuracy.ttft_errors(0.5, 1.0) is None  # of such nothing is known
    assert accuracy.ttft.bias == pytest.approx((0.018 + 0.99) / 2, rel=0.2)


def test_errors_that_nobody_confirms_lapse() -> None:
    """Or requests that are rejected for them could not show that they are over."""
    accuracy = Accuracy()
    for number in range(16):
        assert accuracy.ttft_errors(1.0, number) is None
        accuracy.first_token(Compared(9.0, 1.0), Compared(0, 0), float(number))
    assert accuracy.ttft_errors(1.0, 40.0) is not None
    assert accuracy.ttft_errors(1.0, 46.0) is None


def test_cached_tokens_and_gaps_have_errors_too() -> None:
    accuracy = Accuracy()
    accuracy.first_token(Compared(1.0, 1.0), Compared(96.0, 128.0), 0.0)
    accuracy.first_token(Compared(1.0, 1.0), Compared(64.0, 0.0), 0.0)
    accuracy.answered(Compared(0.03, 0.02), 0.0)
    assert accuracy.cached_tokens.bias == pytest.approx(16.0)
    assert accuracy.itl.ratios.p50 == pytest.approx(1.5)
