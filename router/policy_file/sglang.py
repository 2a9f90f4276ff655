"""Flags of SGLang's router and of its successor, the Shepherd Model Gateway, as a routing policy.

Their values go nowhere but into the few settings named here: among the flags are secrets.
"""

import shlex
from collections.abc import Mapping
from typing import Any, Final

from cluster.errors import ConfigError
from router.policies.registry import DEFAULT
from router.policy import Disaggregate
from router.policy_file.imported import Imported, imported

Flags = dict[str, str]

_DEFAULT_RULE: Final = "cache_aware"
_RULES: Final = {
    "cache_aware": "sglang_cache_aware",
    "round_robin": "round_robin",
    "random": "random",
    "power_of_two": "power_of_two",
    "least_load": "least_work",
}
_RULE_NOTES: Final = {
    "least_load": "load is counted in predicted seconds, not in tokens",
    "power_of_two": "KV in use is compared, not the expected wait",
}
# Rules of theirs that have no counterpart here.
_THEIRS: Final = {"bucket", "consistent_hashing", "manual", "passthrough", "prefix_hash"}
_PARAMETERS: Final[Mapping[str, tuple[str, type[int] | type[float]]]] = {
    "balance-abs-threshold": ("balanceAbsThreshold", int),
    "spill-abs-threshold": ("balanceAbsThreshold", int),
    "balance-rel-threshold": ("balanceRelThreshold", float),
    "spill-rel-threshold": ("balanceRelThreshold", float),
    "worker-overload-waiting-requests": ("overloadWaiting", int),
    "worker-overload-token-usage": ("overloadKvUsage", float),
}
_CARRIED: Final = {"policy", "prefill-policy", "pd-disaggregation", "queue-size"}
# Beginning of a flag -> what there is instead.
_INSTEAD: Final = {
    "decode-policy": "the decode worker is chosen by predicted seconds",
    "cache-threshold": "matches are exact, and one of any length counts",
    "eviction-interval": "the index is bounded in bytes, by the router's configuration",
    "max-tree-size": "the index is bounded in bytes, by the router's configuration",
    "max-concurrent-requests": "it is 'max_in_flight' of the router's configuration",
    "queue-timeout": "a request waits until its own deadline",
    "request-timeout": "a request has its own deadline",
    "rate-limit": "requests are refused by what they would wait: see 'admission'",
    "retry-": "retries are the router's and the client's own",
    "disable-retries": "retries are the router's and the client's own",
    "cb-": "who serves is known from the workers' own reports",
    "disable-circuit-breaker": "who serves is known from the workers' own reports",
    "health-": "who serves is known from the workers' own reports",
}
_NO_PART: Final = "no part of a routing policy"
# Beginnings of flags of theirs that are none.
_NONE_OF_OURS: Final = (
    "api-key", "backend", "chat-template", "connection-", "control-plane-", "cors-", "decode",
    "dp-", "enable-", "history-", "host", "jwt-", "log-", "max-payload-size", "mcp-", "mini-lb",
    "model", "oracle-", "port", "postgres-", "prefill", "prometheus-", "reasoning-parser", "redis-",
    "request-id-headers", "selector", "service-discovery", "shutdown-", "tls-", "tokenizer-",
    "tool-call-parser", "trace", "otlp-", "worker-",
)  # fmt: skip


def import_sglang(text: str, source: str) -> Imported:
    """`text` is a command line or some of it, comments and continued lines allowed. Raises
    ConfigError."""
    flags = _flags(text, source)
    _check_known(flags, source)
    named = flags.get("prefill-policy") or flags.get("policy") or _DEFAULT_RULE
    rule = _RULES.get(named, DEFAULT)
    is_split = "pd-disaggregation" in flags
    placement = {
        "rule": rule,
        "parameters": _parameters(flags, source) if rule == _RULES[_DEFAULT_RULE] else {},
        "disaggregate": Disaggregate.ALWAYS if is_split else Disaggregate.AUTO,
    }
    spec = {"placement": placement, "admission": _admission(flags, source)}
    notes = [*_rule_notes(named, rule), *_flag_notes(flags, rule)]
    if not is_split:
        notes.append("whether to disaggregate is decided by price: 'never' is the way it was.")
    return imported("from-sglang", spec, notes, source=source)


def _check_known(flags: Flags, source: str) -> None:
    """Flags of which none is theirs are somebody else's."""
    theirs = (*_CARRIED, *_PARAMETERS, *_INSTEAD, *_NONE_OF_OURS)
    if not any(flag.startswith(theirs) for flag in flags):
        names = ", ".join(f"--{flag[:40]}" for flag in list(flags)[:5])
        raise ConfigError(
            f"In {source}: none of these is a flag of SGLang's router or of SMG: {names}."
        )
    for flag in ("policy", "prefill-policy"):
        named = flags.get(flag, _DEFAULT_RULE)
        if named not in _RULES and named not in _THEIRS:
            raise ConfigError(
                f"In {source}: '--{flag} {named[:40]}' is no policy of SGLang's router or of SMG:"
                f" give one of {', '.join(sorted({*_RULES, *_THEIRS}))}."
            )


def _flags(text: str, source: str) -> Flags:
    """Reads the flags; of one that is given twice the last, as there."""
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise ConfigError(f"In {source}: these are no flags: {error}.") from error
    flags: Flags = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].removeprefix("router-").partition("=")
            flags[name] = value
        elif name:
            flags[name] = f"{flags[name]} {word}".strip()
    if not flags:
        raise ConfigError(f"In {source}: there is no flag: give what follows the router's name.")
    return flags


def _parameters(flags: Flags, source: str) -> dict[str, Any]:
    return {
        parameter: _number(flags[flag], kind, flag, source)
        for flag, (parameter, kind) in _PARAMETERS.items()
        if flag in flags
    }


def _admission(flags: Flags, source: str) -> dict[str, Any]:
    if "queue-size" not in flags:
        return {}
    return {"maxQueued": _number(flags["queue-size"], int, "queue-size", source)}


def _number(text: str, kind: type[int] | type[float], flag: str, source: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"In {source}: '--{flag} {text[:40]}': give a number.") from error


def _rule_notes(named: str, rule: str) -> list[str]:
    if named not in _RULES:
        return [f"there is no rule '{named}' here: the default, '{rule}', stands in its place."]
    return [f"'{named}': {_RULE_NOTES[named]}."] if named in _RULE_NOTES else []


def _flag_notes(flags: Flags, rule: str) -> list[str]:
    used = _CARRIED | (set(_PARAMETERS) if rule == _RULES[_DEFAULT_RULE] else set())
    left_out = [flag for flag in flags if flag not in used]
    instead = {flag: _instead(flag) for flag in left_out}
    notes = [f"'--{flag}': {why}." for flag, why in instead.items() if why != _NO_PART]
    others = [f"--{flag}" for flag, why in instead.items() if why == _NO_PART]
    return [*notes, f"{_NO_PART}: {', '.join(others)}."] if others else notes


def _instead(flag: str) -> str:
    return next((why for start, why in _INSTEAD.items() if flag.startswith(start)), _NO_PART)
