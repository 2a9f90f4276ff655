"""One loan of KV between two modelled workers: the real ends of `loan.py` on the agenda.

No sign of life is posted, so that runs of steps stay runs: whoever asks how a loan stands takes a
lender that is not frozen to have said that it lives.
"""

from math import inf

from cluster.errors import TransferFailed
from kv_transfer.loan import Borrower, Lender, Word
from simulator.site import Site


class ModelledLoan:
    __slots__ = ("_agenda", "_at_borrower", "_at_lender", "_lender")

    def __init__(self, lender: Site, *, is_prompt: bool) -> None:
        setting = lender.world.setting
        self._agenda = lender.world.agenda
        self._lender = lender
        now, lease_s = self._agenda.now_s, setting.lease_s
        self._at_borrower = Borrower(
            now,
            lease_s=lease_s,
            grant_s=setting.grant_s if is_prompt else inf,
            wants_tokens=is_prompt,
        )
        self._at_lender = Lender(now, lease_s=lease_s, owes_tokens=is_prompt)

    def said(self, word: Word) -> None:
        """The lender says it; `arrived` follows."""
        self._at_lender.says(word, self._agenda.now_s)

    def arrived(self, word: Word) -> None:
        self._at_borrower.heard(word, self._agenda.now_s)

    def granted(self) -> None:
        """The borrower has blocks; `grant_arrived` follows."""
        self._at_borrower.grants(self._agenda.now_s)

    def grant_arrived(self) -> bool:
        """Tells whether it counts."""
        return self._at_lender.heard(Word.GRANT, self._agenda.now_s)

    def has_failed(self) -> bool:
        """Tells if its borrower gives up: for too long nothing was heard, or no block came free."""
        now = self._agenda.now_s
        if not self._lender.is_frozen:
            self._at_borrower.heard(Word.ALIVE, now)
        try:
            self._at_borrower.tick(now)
        except TransferFailed:
            return True
        return False
