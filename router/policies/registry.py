"""The named rules, and how one is made from its name and parameters."""

from collections.abc import Mapping
from typing import Any

from cluster.document.keys import parse_section, to_file
from cluster.errors import ConfigError
from router.policies.aibrix_prefix_cache import AibrixPrefixCache
from router.policies.dynamo_cost import DynamoCost
from router.policies.least_work import LeastWork
from router.policies.llmd_profile import LlmdProfile
from router.policies.lmetric import LMetric
from router.policies.longest_prefix import LongestPrefix
from router.policies.mooncake_algorithm1 import MooncakeAlgorithm1
from router.policies.power_of_two import PowerOfTwo
from router.policies.preble_e2 import PrebleE2
from router.policies.priced import Priced
from router.policies.random import Random
from router.policies.round_robin import RoundRobin
from router.policies.rule import Rule
from router.policies.sglang_cache_aware import SglangCacheAware

DEFAULT = "priced"

RULES: dict[str, type[Any]] = {
    DEFAULT: Priced,
    "mooncake_algorithm1": MooncakeAlgorithm1,
    "lmetric": LMetric,
    "preble_e2": PrebleE2,
    "llmd_profile": LlmdProfile,
    "aibrix_prefix_cache": AibrixPrefixCache,
    "sglang_cache_aware": SglangCacheAware,
    "dynamo_cost": DynamoCost,
    "longest_prefix": LongestPrefix,
    "least_work": LeastWork,
    "power_of_two": PowerOfTwo,
    "random": Random,
    "round_robin": RoundRobin,
}


def make_rule(name: str, parameters: Mapping[str, Any] | None = None) -> Rule[Any]:
    """`parameters` as a policy file writes them. Raises ConfigError for a name or a parameter that
    does not exist, or a wrong value."""
    if name not in RULES:
        raise ConfigError(f"'{name[:80]}' is no placement rule: choose from {', '.join(RULES)}.")
    rule: Rule[Any] = parse_section(
        RULES[name], parameters or {}, f"the parameters of rule '{name}'"
    )
    return rule


def name_of(rule: Rule[Any]) -> str:
    return next(name for name, kind in RULES.items() if isinstance(rule, kind))


def parameters_of(name: str) -> dict[str, Any]:
    """Lists what may be set, with the defaults, as a policy file writes it."""
    shown: dict[str, Any] = to_file(RULES[name]())
    return shown
