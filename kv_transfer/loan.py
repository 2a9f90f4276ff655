"""The protocol of one loan of KV, without I/O and without a clock of its own.

Whoever needs KV *borrows*; whoever computes it, or has it cached, *lends*. Both ends run this.

    borrower ── what ───────▶ lender    a prompt to compute, a prefix that is cached, a pattern
             ◀──── FOUND ────           it is here, or is being computed: reserve now
             ───── GRANT ───▶           leave to write, for one epoch and one lease
             ◀──── TOKENS ───           of a prompt: its first tokens, which wait for nothing
             ◀──── WRITTEN ──           all has landed; the lender never writes again
             ◀──── ALIVE ───▶           either end, while it lives and what it does moves

Rules
  1. FOUND comes first and once. TOKENS come once after it, of a prompt alone. WRITTEN comes last,
     once all of the other words have been said. A word out of its turn ends the loan: the peer is
     wrong (RemoteProtocolError).
  2. One grant counts, the first. A later one changes nothing: it may have crossed something.
  3. Who has said nothing for a third of a lease says ALIVE; a lender only while its work moves.
  4. Who hears nothing for a lease gives up (Silent). Once it is granted a lender goes by the
     lease of its transfer instead, which the true clock ends.
  5. A borrower that has not granted within its limit gives up: no block came free.
  6. Either end leaves at any moment, by ending the call. What may still be written then is the
     business of `transfer.py`.

Times are the caller's, in seconds, and run only while it is there to hear (`cluster.lateness`).
"""

from enum import StrEnum
from math import inf

from cluster.errors import TransferFailed
from kv_transfer.transfer import LocalProtocolError, RemoteProtocolError


class Word(StrEnum):
    FOUND = "found"
    GRANT = "grant"
    TOKENS = "tokens"
    WRITTEN = "written"
    ALIVE = "alive"


class Phase(StrEnum):
    ASKED = "asked"
    FOUND = "found"
    GRANTED = "granted"
    WRITTEN = "written"


class Silent(TransferFailed):
    """Nothing was heard of the other end for a lease."""


class _End:
    """Keeps what both ends know: how far the loan is, and when each was heard last."""

    __slots__ = ("_heard_at", "_lease_s", "_said_at", "phase")

    def __init__(self, now: float, lease_s: float) -> None:
        self.phase = Phase.ASKED
        self._lease_s = lease_s
        self._heard_at = self._said_at = now

    def pause_s(self, now: float) -> float:
        """Says for how long `tick` has nothing to do; never so short that who asks again and again
        holds up all else, for a clock that settles in stands still meanwhile."""
        third_s = self._lease_s / 3
        dues = (self._said_at + third_s - now, self._heard_at + self._lease_s - now)
        return max(min((due for due in dues if due > 0), default=third_s), third_s / 10)

    def _owes_sign(self, now: float) -> bool:
        return now >= self._said_at + self._lease_s / 3

    def _check_heard(self, now: float, peer: str) -> None:
        if now >= self._heard_at + self._lease_s:
            raise Silent(f"The {peer} gave no sign of progress for {self._lease_s:g} s.")


class Borrower(_End):
    """The end that reserves blocks, and waits for them to be filled."""

    __slots__ = ("_found_at", "_grant_s", "_wants_tokens")

    def __init__(
        self, now: float, *, lease_s: float, grant_s: float = inf, wants_tokens: bool = False
    ) -> None:
        """`grant_s`: how long blocks are waited for once the lender is ready to fill them."""
        super().__init__(now, lease_s)
        self._found_at = inf
        self._grant_s = grant_s
        self._wants_tokens = wants_tokens

    def heard(self, word: Word, now: float) -> None:
        """Raises RemoteProtocolError where the lender cannot say it now."""
        self._heard_at = now
        match word:
            case Word.ALIVE if self.phase is not Phase.WRITTEN:
                pass
            case Word.FOUND if self.phase is Phase.ASKED:
                self.phase, self._found_at = Phase.FOUND, now
            case Word.TOKENS if self._wants_tokens and self.phase is not Phase.ASKED:
                self._wants_tokens = False
            case Word.WRITTEN if self.phase is Phase.GRANTED and not self._wants_tokens:
                self.phase = Phase.WRITTEN
            case _:
                raise RemoteProtocolError(_wrong(self.phase, "borrower", word))

    def grants(self, now: float) -> None:
        """Blocks are reserved, and the grant is sent."""
        if self.phase is not Phase.FOUND:
            raise LocalProtocolError(_wrong(self.phase, "borrower", Word.GRANT))
        self.phase, self._said_at = Phase.GRANTED, now

    def tick(self, now: float) -> bool:
        """Tells whether to say ALIVE now. Raises Silent, or TransferFailed without blocks."""
        if self.phase is Phase.WRITTEN:
            return False
        self._check_heard(now, "lender")
        if self.phase is Phase.FOUND and now >= self._found_at + self._grant_s:
            raise TransferFailed(f"No blocks were free for {now - self._found_at:.1f} s.")
        if is_due := self._owes_sign(now):
            self._said_at = now
        return is_due


class Lender(_End):
    """The end that has the KV, or computes it, and writes it."""

    __slots__ = ("owes_tokens",)

    def __init__(self, now: float, *, lease_s: float, owes_tokens: bool = False) -> None:
        super().__init__(now, lease_s)
        self.owes_tokens = owes_tokens

    def says(self, word: Word, now: float) -> None:
        """Raises LocalProtocolError where it cannot be said now."""
        self._said_at = now
        match word:
            case Word.FOUND if self.phase is Phase.ASKED:
                self.phase = Phase.FOUND
            case Word.TOKENS if self.owes_tokens and self.phase is not Phase.ASKED:
                self.owes_tokens = False
            case Word.WRITTEN if self.phase is Phase.GRANTED and not self.owes_tokens:
                self.phase = Phase.WRITTEN
            case _:
                raise LocalProtocolError(_wrong(self.phase, "lender", word))

    def heard(self, word: Word, now: float) -> bool:
        """Takes a word in; tells whether it counts: a second grant does not. Raises
        RemoteProtocolError where the borrower cannot say it now."""
        self._heard_at = now
        match word:
            case Word.ALIVE:
                return True
            case Word.GRANT if self.phase is Phase.FOUND:
                self.phase = Phase.GRANTED
                return True
            case Word.GRANT if self.phase is not Phase.ASKED:
                return False
            case _:
                raise RemoteProtocolError(_wrong(self.phase, "lender", word))

    def tick(self, now: float, *, moves: bool) -> bool:
        """Tells whether to say ALIVE now. Raises Silent of a borrower that grants nothing."""
        if self.phase in (Phase.ASKED, Phase.FOUND):
            self._check_heard(now, "borrower")
        if is_due := moves and self.phase is not Phase.WRITTEN and self._owes_sign(now):
            self._said_at = now
        return is_due


def _wrong(phase: Phase, end: str, word: Word) -> str:
    return f"A loan that is {phase} at the {end} cannot take '{word}'"
