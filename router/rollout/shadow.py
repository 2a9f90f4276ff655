"""A second policy that decides the same requests again, once they have ended, with a state of its
own, and changes nothing. What it would have done differently is counted.
"""

import logging
from dataclasses import dataclass

from router.decision import Attempt, Decision, place
from router.explain import price_of
from router.policy import Policy, PolicyState

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class Shadow:
    """Differences are sums over the evaluated, the shadow's less the live policy's."""

    policy: Policy
    state: PolicyState
    sample_share: float
    num_evaluated: int = 0
    num_disagreed: int = 0
    num_failed: int = 0
    ttft_difference_s: float = 0.0
    price_difference_s: float = 0.0  # as the live policy prices both

    def look(self, attempt: Attempt) -> None:
        """Decides what the live policy has decided. Never raises: it serves nobody."""
        if attempt.decision is None:
            return
        try:
            self._compare(attempt, attempt.decision)
        except Exception:
            self.num_failed += 1
            if self.num_failed == 1:
                logger.exception("the shadow of policy '%s' failed", attempt.policy.name)

    def _compare(self, attempt: Attempt, live: Decision) -> None:
        request, policy = attempt.request, self.policy
        service = policy.service_class(request.service_class.name) or policy.classes[0]
        own = request._replace(service_class=service)
        if not policy.speculates:
            own = own._replace(num_held=None)
        decision, self.state = place(own, attempt.snapshot, self.state, policy)
        if decision is None:
            return
        self.num_evaluated += 1
        self.ttft_difference_s += decision.ttft_s - live.ttft_s
        if decision.placement != live.placement:
            self.num_disagreed += 1
            theirs, ours = (price_of(attempt, each.placement) for each in (live, decision))
            self.price_difference_s += ours - theirs
