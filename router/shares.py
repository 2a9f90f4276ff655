"""Counts who used how much of the workers lately, against the tenants' shares. While nobody waits
too long shares mean nothing; while somebody does, who used more than its share is due later and
rejected first, by as many times.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from router.decaying import DecayingSums
from router.decision import Decision, PlacementRequest
from router.policy_settings import MAX_TENANTS, TenantShare
from router.pool import PoolSnapshot

_HALF_LIFE_S: Final = 60.0  # of what was used
_SHORT_S: Final = 5.0  # since the last request that was predicted to be late
_FRESH_S: Final = 0.25  # so long ratios are not computed anew
_MAX_EXCESS: Final = 8.0
_ABSENT: Final = 0.01  # of all that was used: who used less leaves its share to the others
_DEFAULT_SHARE: Final = 1.0


class TenantUse:
    """Predicted GPU seconds by tenant, decaying. Seconds are of the router's monotonic clock."""

    def __init__(self) -> None:
        self._used_s = DecayingSums[str](_HALF_LIFE_S, MAX_TENANTS)
        self._short_until_s = -math.inf
        self._excesses: dict[str, float] = {}
        self._fresh_until_s = -math.inf

    def charge(self, tenant: str, gpu_s: float, now_s: float) -> None:
        self._used_s.add(tenant, gpu_s, now_s)

    def late(self, now_s: float) -> None:
        """A request's first token is predicted to come too late."""
        self._short_until_s = now_s + _SHORT_S

    def is_short(self, now_s: float) -> bool:
        return now_s < self._short_until_s

    def excess(self, tenant: str, shares: Sequence[TenantShare], now_s: float) -> float:
        """Says how many times its share it used, if that is more than once and workers are short;
        else 1."""
        if now_s >= self._short_until_s or len(self._used_s) < 2:
            return 1.0
        if now_s >= self._fresh_until_s:
            self._excesses = excesses(self.used_s(now_s), shares)
            self._fresh_until_s = now_s + _FRESH_S
        return self._excesses.get(tenant, 1.0)

    def used_s(self, now_s: float) -> dict[str, float]:
        """Gives each tenant's use as it counts now."""
        return self._used_s.all(now_s)


def excesses(used_s: Mapping[str, float], shares: Sequence[TenantShare]) -> dict[str, float]:
    """Used / share, both as parts of what those use and have who are there; 1 at least."""
    given = {each.name: each.share for each in shares}
    all_s = sum(used_s.values())
    there = [tenant for tenant, used in used_s.items() if used > _ABSENT * all_s]
    share_of = {tenant: given.get(tenant, _DEFAULT_SHARE) for tenant in there}
    shares_per_s = sum(share_of.values()) / max(all_s, 1e-12)
    return {
        tenant: min(max(used_s[tenant] * shares_per_s / max(share, 1e-12), 1.0), _MAX_EXCESS)
        for tenant, share in share_of.items()
    }


def gpu_s(request: PlacementRequest, decision: Decision, snapshot: PoolSnapshot) -> float:
    """Predicted seconds that a request uses: its prompt, and its part of the steps that decode
    its answer."""
    decode = snapshot.loads[snapshot.loads.positions[decision.placement.decode]]
    part = request.num_choices / (decode.num_in_flight + request.num_choices)
    return decision.prefill_s + part * request.num_output_tokens * decision.itl_s
