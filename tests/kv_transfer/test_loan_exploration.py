"""Every interleaving of a loan's two ends and of its transfer: words, silence, stuck writes, and
either end leaving at any moment; each end honest, or the other saying whatever it likes. Nothing is
used that did not land, no write goes into blocks in use, no end waits for ever, and where nobody is
frozen nobody is called silent."""

from collections.abc import Callable
from typing import Any

import pytest

from kv_transfer import loan
from kv_transfer.loan import Borrower, Lender, Phase, Word
from kv_transfer.transfer import State
from tests.kv_transfer.loan_model import Bounds, World, Wrong, begun, check, check_ends, steps

# By bounds: how many worlds there are.
SPACES: dict[Bounds, int] = {
    Bounds(): 32_142,
    Bounds(has_tokens=False): 8_026,
    Bounds(is_fair=True): 2_060,
    Bounds(has_tokens=False, is_fair=True): 750,
    Bounds(false_end="lender"): 4_201,
    Bounds(false_end="borrower"): 22_043,
}


def explore(bounds: Bounds) -> set[World]:
    seen = {begun(bounds)}
    level = list(seen)
    while level:
        found = []
        for world in level:
            for following in steps(world, bounds):
                if following not in seen:
                    seen.add(following)
                    found.append(following)
                    check(following)
                    check_ends(following)
        level = found
    return seen


def spelt(bounds: Bounds) -> str:
    kind = "prompt" if bounds.has_tokens else "prefix"
    return f"{kind} {'fair' if bounds.is_fair else bounds.false_end}".strip()


@pytest.mark.slow
@pytest.mark.parametrize("bounds", SPACES, ids=spelt)
def test_nothing_goes_wrong_whatever_happens(bounds: Bounds) -> None:
    worlds = explore(bounds)
    print(f"{spelt(bounds)}: {len(worlds):,} worlds")
    assert len(worlds) == SPACES[bounds], "are all of its events still there?"
    ends = {(one.borrower.transfer, one.lender.transfer) for one in worlds}
    if bounds.false_end:
        assert {one.borrower.has_left for one in worlds} == {True, False}
    else:
        assert (State.VERIFIED, State.WRITTEN) in ends, "no loan ever succeeds"
        assert (State.CLOSED, State.CLOSED) in ends, "none is ever given up"


def never(*arguments: Any, **named: Any) -> bool:
    return False


def hears_all(end: Any, word: Word, now: float) -> bool:
    """Whatever comes moves it on."""
    end._heard_at = now
    match word:
        case Word.FOUND:
            end.phase = Phase.FOUND
        case Word.GRANT:
            end.phase = Phase.GRANTED
        case Word.WRITTEN:
            end.phase = Phase.WRITTEN
    return True


MUTANTS: dict[str, tuple[type, str, Callable[..., Any], Bounds]] = {
    "a borrower says no sign of life": (Borrower, "_owes_sign", never, Bounds(is_fair=True)),
    "a lender says no sign of life": (Lender, "_owes_sign", never, Bounds(is_fair=True)),
    "a borrower waits for ever": (Borrower, "_check_heard", never, Bounds()),
    "a lender waits for ever": (Lender, "_check_heard", never, Bounds()),
    "a borrower takes any word": (Borrower, "heard", hears_all, Bounds(false_end="lender")),
    "a lender takes any word": (Lender, "heard", hears_all, Bounds(false_end="borrower")),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_rule_is_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end, method, broken, bounds = MUTANTS[mutant]
    monkeypatch.setattr(end, method, broken)
    with pytest.raises(Wrong):
        explore(bounds)


@pytest.mark.slow
def test_a_lender_that_forgets_what_it_has_fenced_is_found() -> None:
    """A grant may come after the fence of its epoch."""
    with pytest.raises(Wrong, match="blocks that are in use"):
        explore(Bounds(forgets_fences=True))


def test_a_refusal_names_what_was_said_and_when() -> None:
    borrower = Borrower(0.0, lease_s=1.0)
    refused = "asked at the borrower cannot take 'written'"
    with pytest.raises(loan.RemoteProtocolError, match=refused):
        borrower.heard(Word.WRITTEN, 0.1)


def test_a_borrower_without_blocks_gives_up() -> None:
    borrower = Borrower(0.0, lease_s=1.0, grant_s=2.5)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5):
        borrower.heard(Word.FOUND if now == 0.5 else Word.ALIVE, now)
        borrower.tick(now)
    borrower.heard(Word.ALIVE, 3.0)
    with pytest.raises(loan.TransferFailed, match=r"No blocks were free for 2\.5 s"):
        borrower.tick(3.0)
