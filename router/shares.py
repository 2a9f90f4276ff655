"""Who used how much of the workers lately, against the tenants' shares. While nobody waits too
long shares mean nothing; while somebody does, who used more than its share is due later and
rejected first, by as many times.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from router.policy import Decision, PlacementRequest
from router.policy_settings import MAX_TENANTS, TenantShare
from router.pool import PoolSnapshot

_HALF_LIFE_S: Final = 60.0  # of what was used
_SHORT_S: Final = 5.0  # since the last request that was predicted to be late
_FRESH_S: Final = 0.25  # so long ratios are not computed anew
_MAX_EXCESS: Final = 8.0
_NO_USE: Final = 1e-4  # of all: who used less is gone
_DEFAULT_SHARE: Final = 1.0


class TenantUse:
    """Predicted GPU seconds by tenant, decaying. Seconds are of the router's monotonic clock."""

    def __init__(self) -> None:
        self._used_s: dict[str, float] = {}  # as of `_at_s`
        self._at_s = 0.0
        self._short_until_s = -math.inf
        self._excesses: dict[str, float] = {}
        self._fresh_until_s = -math.inf

    def charge(self, tenant: str, gpu_s: float, now_s: float) -> None:
        if tenant not in self._used_s and len(self._used_s) >= MAX_TENANTS:
            del self._used_s[min(self._used_s, key=self._used_s.__getitem__)]
        # Decayed by dividing what comes: all would have to be touched otherwise.
        age = (now_s - self._at_s) / _HALF_LIFE_S
        if age > 1.0:
            self._decay(now_s)
            age = 0.0
        self._used_s[tenant] = self._used_s.get(tenant, 0.0) + gpu_s * 2.0**age

    def late(self, now_s: float) -> None:
        """A request's first token is predicted to come too late."""
        self._short_until_s = now_s + _SHORT_S

    def is_short(self, now_s: float) -> bool:
        return now_s < self._short_until_s

    def excess(self, tenant: str, shares: Sequence[TenantShare], now_s: float) -> float:
        """How many times its share it used, if that is more than once and workers are short;
        else 1."""
        if now_s >= self._short_until_s or len(self._used_s) < 2:
            return 1.0
        if now_s >= self._fresh_until_s:
            self._decay(now_s)
            self._excesses = excesses(self._used_s, shares)
            self._fresh_until_s = now_s + _FRESH_S
        return self._excesses.get(tenant, 1.0)

    def used_s(self, now_s: float) -> dict[str, float]:
        """As it counts now."""
        self._decay(now_s)
        return dict(sorted(self._used_s.items()))

    def _decay(self, now_s: float) -> None:
        kept = 2.0 ** ((self._at_s - now_s) / _HALF_LIFE_S)
        total_s = kept * sum(self._used_s.values())
        decayed = {tenant: kept * used_s for tenant, used_s in self._used_s.items()}
        self._used_s = {
            tenant: used_s for tenant, used_s in decayed.items() if used_s > _NO_USE * total_s
        }
        self._at_s = now_s


def excesses(used_s: Mapping[str, float], shares: Sequence[TenantShare]) -> dict[str, float]:
    """Used / share, both as parts of what those use and have who use anything; 1 to _MAX_EXCESS."""
    given = {each.name: each.share for each in shares}
    share_of = {tenant: given.get(tenant, _DEFAULT_SHARE) for tenant in used_s}
    all_used_s, all_shares = sum(used_s.values()), sum(share_of.values())
    return {
        tenant: min(
            max(used * all_shares / max(share_of[tenant] * all_used_s, 1e-12), 1.0), _MAX_EXCESS
        )
        for tenant, used in used_s.items()
    }


def gpu_s(request: PlacementRequest, decision: Decision, snapshot: PoolSnapshot) -> float:
    """Predicted seconds that a request uses: its prompt, and its part of the steps that decode
    its answer."""
    decode = snapshot.loads[snapshot.loads.positions[decision.placement.decode]]
    part = request.num_choices / (decode.num_in_flight + request.num_choices)
    return decision.prefill_s + part * request.num_output_tokens * decision.itl_s
