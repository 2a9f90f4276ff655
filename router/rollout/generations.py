"""The policies that place requests now: the one in force, and the one on trial if there is one.

Each request is pinned to the one that it was first placed with. Swaps are atomic: all is made
before anything is replaced, in one turn of the event loop that owns this. Knows no file and no
store.
"""

import hashlib
from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from router.policy import Policy, PolicyState
from router.policy_file.document import PolicyDocument
from router.policy_settings import CanarySettings
from router.rollout.canary import Figures
from router.rollout.rollout import Generation, Rollout
from router.rollout.shadow import Shadow

_NUM_REMEMBERED = 16  # generations, for who asks what became of their requests


@dataclass(slots=True, eq=False)
class LivePolicy:
    """One generation at work, with all that it remembers. Requests hold it until they end."""

    number: int
    policy: Policy
    state: PolicyState
    shadow: Shadow | None = None
    since_start: Figures = field(default_factory=Figures)
    on_trial: Figures = field(default_factory=Figures)  # since a trial began, its own or another's


class LoadedRollout(NamedTuple):
    """A rollout with its documents read."""

    rollout: Rollout
    active: PolicyDocument
    canary: PolicyDocument | None


class Generations:
    """Begins with a policy that no document gave: generation 0."""

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self._seed = seed
        self.active = LivePolicy(number=0, policy=policy, state=policy.begin(seed))
        self.canary: LivePolicy | None = None
        self.canary_settings = CanarySettings()
        self.remembered: deque[LivePolicy] = deque(maxlen=_NUM_REMEMBERED)

    def choose(self, key: str) -> LivePolicy:
        """Picks for a new request: those of a key (a session's) get one policy, at every router."""
        canary, share = self.canary, self.canary_settings.traffic_share
        is_trying = canary is not None and share_of(key, canary.number) < share
        return canary if canary is not None and is_trying else self.active

    def adopt(self, loaded: LoadedRollout) -> None:
        """Has requests placed by these from now on; those in flight go on as they are."""
        rollout = loaded.rollout
        active, canary = self._live(rollout.active, loaded.active), None
        settings = CanarySettings()
        if rollout.canary is not None and loaded.canary is not None:
            canary = self._live(rollout.canary, loaded.canary)
            settings = loaded.canary.spec.canary or settings
            settings = replace(
                settings, traffic_share=rollout.canary_share or settings.traffic_share
            )
        if canary is not None and canary is not self.canary:
            active.on_trial = Figures()
        for each in (active, canary):
            if each is not None and each not in self.remembered:
                self.remembered.append(each)
        self.active, self.canary, self.canary_settings = active, canary, settings

    def _live(self, generation: Generation, document: PolicyDocument) -> LivePolicy:
        """The one that works already, or one that begins."""
        for known in (self.active, self.canary):
            if known is not None and known.number == generation.number:
                return known
        policy = document.policy()
        spec, shadow_policy = document.spec.shadow, document.shadow_policy()
        shadow = None
        if spec is not None and shadow_policy is not None:
            shadow = Shadow(
                policy=shadow_policy,
                state=shadow_policy.begin(self._seed),
                sample_share=spec.sample_share,
            )
        return LivePolicy(generation.number, policy, self._begin(policy), shadow)

    def _begin(self, policy: Policy) -> PolicyState:
        """The same rule goes on with what it has learnt."""
        if policy.rule == self.active.policy.rule:
            return self.active.state
        return policy.begin(self._seed)


def share_of(key: str, salt: int) -> float:
    """Says where a key lies in [0, 1); independent for each salt."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=salt.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") / 2.0**64
