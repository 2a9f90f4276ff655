"""llm-d's EndpointPickerConfig (v0.10) as a routing policy: the profile that places the prompt
becomes the rule `llmd_profile`, which has the same scorers and pickers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cluster.config import parse_config
from cluster.document.keys import key_of
from cluster.errors import ConfigError
from cluster.strict_yaml import parse_yaml
from router.policies.llmd_profile import PICKERS, SCORERS
from router.policy import Disaggregate
from router.policy_file.document import MAX_POLICY_BYTES
from router.policy_file.imported import Imported, imported

_SPLITTER: Final = "disagg-profile-handler"
_OLD_SPLITTER: Final = "pd-profile-handler"  # before v0.9
_SCORER_NAMES: Final = {"precise-prefix-cache-scorer": "prefix-cache-scorer"}  # before v0.10
_ROLES: Final = {"prefill-filter", "decode-filter", "encode-filter", "single-profile-handler"}
_NOTHING: Final = "there is nothing like it"
_INSTEAD: Final = {
    "session-affinity-scorer": "requests with one 'session_key' stay together: see 'sessions'",
    "session-affinity-filter": "requests with one 'session_key' stay together: see 'sessions'",
    "lora-affinity-scorer": _NOTHING,
    "latency-scorer": "targets are told by class: see 'classes'",
    "slo-headroom-tier-filter": "targets are told by class: see 'classes'",
    "probabilistic-admitter": "requests are refused by their predicted TTFT: see 'admission'",
    "utilization-detector": "requests are refused by their predicted TTFT: see 'admission'",
    "concurrency-detector": "requests are refused by their predicted TTFT: see 'admission'",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plugin:
    type: str
    name: str | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    plugin_ref: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Profile:
    name: str
    plugins: tuple[_Use, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _PickerConfig:
    api_version: str
    kind: str
    plugins: tuple[_Plugin, ...]
    scheduling_profiles: tuple[_Profile, ...]
    feature_gates: tuple[str, ...] = ()
    data_layer: Mapping[str, Any] | None = None
    flow_control: Mapping[str, Any] | None = None
    request_handler: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def import_llmd(text: str, source: str) -> Imported:
    """Raises ConfigError."""
    mapping = parse_yaml(text, source=source, max_bytes=MAX_POLICY_BYTES)
    if not isinstance(mapping, Mapping) or mapping.get("kind") != "EndpointPickerConfig":
        raise ConfigError(f"In {source}: give one of 'kind: EndpointPickerConfig'.")
    config = parse_config(_PickerConfig, mapping, source=source, key_of=key_of)
    plugins = {plugin.name or plugin.type: plugin for plugin in config.plugins}
    profile = _profile_of_the_prompt(config, source)
    used = [(_plugin(plugins, use, source), use.weight) for use in profile.plugins]
    _check_known([plugin.type for plugin, _ in used], source)
    notes: list[str] = []
    placement = {
        "rule": "llmd_profile",
        "parameters": _parameters(used, notes) | _longest_prefix(config.plugins),
        "disaggregate": _disaggregate(plugins, notes),
    }
    spec = {"placement": placement, "admission": _admission(config.flow_control or {}, notes)}
    return imported("from-llm-d", spec, [*notes, *_other_notes(config, profile)], source=source)


def _check_known(types: Sequence[str], source: str) -> None:
    """A profile of nothing but plugins that nobody knows says nothing."""
    known = {*SCORERS, *_SCORER_NAMES, *PICKERS, *_ROLES, *_INSTEAD, "utilization-filter"}
    if types and not known.intersection(types):
        raise ConfigError(
            f"In {source}: none of the profile's plugins is known here: {', '.join(types)[:200]}."
        )


def _profile_of_the_prompt(config: _PickerConfig, source: str) -> _Profile:
    profiles = {profile.name: profile for profile in config.scheduling_profiles}
    if not profiles:
        raise ConfigError(f"In {source}: 'schedulingProfiles' is empty: there is nothing to place.")
    parameters = _splitter(config.plugins).parameters or {}
    named = _section(parameters, "profiles").get("prefill") or parameters.get("prefillProfile")
    return profiles.get(str(named or "prefill")) or next(iter(profiles.values()))


def _splitter(plugins: Iterable[_Plugin]) -> _Plugin:
    """Finds what decides whether a prompt is computed elsewhere; an empty one where none does."""
    found = (each for each in plugins if each.type in (_SPLITTER, _OLD_SPLITTER))
    return next(found, _Plugin(type=""))


def _plugin(plugins: Mapping[str, _Plugin], use: _Use, source: str) -> _Plugin:
    if use.plugin_ref not in plugins:
        raise ConfigError(
            f"In {source}: 'pluginRef: {use.plugin_ref}' is none of the plugins:"
            f" {', '.join(plugins)}."
        )
    return plugins[use.plugin_ref]


def _parameters(used: Iterable[tuple[_Plugin, float]], notes: list[str]) -> dict[str, Any]:
    """Gives the parameters of the rule; what it does not know goes to the notes."""
    weights: dict[str, float] = {}
    parameters: dict[str, Any] = {}
    for plugin, weight in used:
        scorer = _SCORER_NAMES.get(plugin.type, plugin.type)
        if scorer in SCORERS:
            weights[scorer] = weights.get(scorer, 0.0) + weight
        elif plugin.type in PICKERS:
            parameters["picker"] = plugin.type
        elif (most := _most_waiting(plugin)) is not None:
            parameters["maxWaiting"] = most
        elif plugin.type not in _ROLES:
            why = _INSTEAD.get(plugin.type, _NOTHING)
            notes.append(f"'{plugin.type}': {why}.")
            continue
        notes += _parameter_notes(plugin)
    if not weights:
        notes.append("no scorer could be carried over: the built-in weights stand in their place.")
        return parameters
    return {"weights": weights, **parameters}


def _longest_prefix(plugins: Iterable[_Plugin]) -> dict[str, Any]:
    """Says what of a prompt is compared with what is cached."""
    limits = [(each.parameters or {}).get("maxPrefixTokensToMatch") for each in plugins]
    limit = next(filter(None, limits), None)
    return {} if limit is None else {"maxPrefixTokens": limit}


def _most_waiting(plugin: _Plugin) -> int | None:
    """Reads what a utilization filter says about queues."""
    if plugin.type != "utilization-filter":
        return None
    conditions = (plugin.parameters or {}).get("conditions")
    limits = [
        condition.get("maxValue")
        for condition in (conditions if isinstance(conditions, list) else [])
        if isinstance(condition, Mapping) and condition.get("metric") == "waiting-queue"
    ]
    return int(limits[0]) if limits and isinstance(limits[0], int | float) else None


def _parameter_notes(plugin: _Plugin) -> list[str]:
    if not plugin.parameters:
        return []
    keys = ", ".join(str(key) for key in plugin.parameters)
    if plugin.type == "utilization-filter":
        return ["'utilization-filter': only the limit of 'waiting-queue' is carried over."]
    return [f"'{plugin.type}': its parameters ({keys}) have their usual values here."]


def _disaggregate(plugins: Mapping[str, _Plugin], notes: list[str]) -> Disaggregate:
    splitter = _splitter(plugins.values())
    parameters = splitter.parameters or {}
    if not splitter.type:
        notes.append("whether to disaggregate is decided by price: 'never' is the way it was.")
        return Disaggregate.AUTO
    if splitter.type == _OLD_SPLITTER:
        threshold = parameters.get("threshold", 0)
        return _by_threshold("threshold", threshold, Disaggregate.ALWAYS, notes)
    decider = plugins.get(str(_section(parameters, "deciders").get("prefill")))
    if decider is None:
        return Disaggregate.NEVER
    if decider.type.startswith("always-disagg"):
        return Disaggregate.ALWAYS
    threshold = (decider.parameters or {}).get("nonCachedTokens", 0)
    return _by_threshold("nonCachedTokens", threshold, Disaggregate.NEVER, notes)


def _by_threshold(
    key: str, threshold: Any, at_zero: Disaggregate, notes: list[str]
) -> Disaggregate:
    if not threshold:
        return at_zero
    notes.append(f"'{key}: {threshold}': whether to disaggregate is decided by price.")
    return Disaggregate.AUTO


def _admission(flow_control: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    most = flow_control.get("maxRequests")
    left_out = [str(key) for key in flow_control if key != "maxRequests"]
    if left_out:
        notes.append(f"of 'flowControl' only 'maxRequests' is carried, not {', '.join(left_out)}.")
    return {} if most is None else {"maxQueued": most}


def _other_notes(config: _PickerConfig, chosen: _Profile) -> list[str]:
    others = [profile.name for profile in config.scheduling_profiles if profile is not chosen]
    notes = [f"profile '{name}': it is chosen by predicted seconds." for name in others]
    producers = [each.type for each in config.plugins if each.type.endswith("-producer")]
    if producers:
        notes.append(f"not needed, as the index is exact: {', '.join(dict.fromkeys(producers))}.")
    unused = [
        key
        for key, value in (
            ("featureGates", config.feature_gates),
            ("dataLayer", config.data_layer),
            ("requestHandler", config.request_handler),
        )
        if value
    ]
    return [*notes, f"no part of a routing policy: {', '.join(unused)}."] if unused else notes


def _section(mapping: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    found = (mapping or {}).get(key)
    return found if isinstance(found, Mapping) else {}
