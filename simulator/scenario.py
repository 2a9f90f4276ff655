"""A simulation as a person writes it down: workloads, faults and clusters, from a line of text
or a YAML file to values. Whatever is wrong with it is a ConfigError with a sentence.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cluster.config import load_config, parse_config
from cluster.errors import ConfigError
from router.policies.registry import RULES, make_rule
from router.policies.rule import Rule
from simulator.adversarial import ADVERSARIAL
from simulator.comparison import COSTS
from simulator.faults import Crash, Freeze, LostEvents, Partition, Slow, TimedFault, random_faults
from simulator.setting import DECODE_COST, Setting, WorkerMake
from simulator.synthetic import conversations, fan_outs, shared_prefixes
from simulator.trace import Trace

# A 70-billion model on GPUs of 80 GB and 2 TB/s: what is left beside the weights is KV.
MAKES = {
    "70b-4gpu": WorkerMake(),
    "70b-2gpu": WorkerMake(
        prefill_cost=COSTS["70b-2gpu"],
        decode_cost=replace(DECODE_COST, d0=36e-3, d1=8e-8),
        cache_tokens=56_000,
        num_gpus=2,
    ),
}
WORKLOADS: Mapping[str, Callable[..., Trace]] = {
    "shared_prefixes": shared_prefixes,
    "conversations": conversations,
    "fan_outs": fan_outs,
    **ADVERSARIAL,
}
FAULTS: Mapping[str, type[TimedFault]] = {
    "crash": Crash,
    "freeze": Freeze,
    "slow": Slow,
    "lost_events": LostEvents,
    "partition": Partition,
}
RANDOM = "random"  # faults of every kind
_MAX_SHOWN = 80  # characters of what is wrong
_RANDOM_DEFAULTS = {"num": 4, "longest_s": 10.0}


def parse_workload(text: str, *, seed: int) -> Trace:
    """`KIND` or `KIND: {KEY: VALUE}`: invented traffic, by that name."""
    name, parameters = _named(text, "workload", WORKLOADS)
    make = WORKLOADS[name]
    given = _parsed(_parameters_of(make), parameters, f"the workload '{name}'")
    seeds = {"seed": seed} if "seed" in inspect.signature(make).parameters else {}
    return replace(make(**given, **seeds), name=name)


def parse_fault(
    text: str, setting: Setting, *, seed: int, duration_s: float
) -> Sequence[TimedFault]:
    """`KIND: {worker: NAME, at_s: S, for_s: S}`, or `random: {num: N}` for some of every kind
    within the `duration_s` of the trace."""
    name, parameters = _named(text, "fault", [*FAULTS, RANDOM])
    source = f"the fault '{name}'"
    if name != RANDOM:
        return (parse_config(FAULTS[name], parameters, source=source),)
    fields = [(key, type(value), field(default=value)) for key, value in _RANDOM_DEFAULTS.items()]
    given = _parsed(make_dataclass(RANDOM, fields, kw_only=True), parameters, source)
    if not 0 < given["num"] <= 100_000 or not given["longest_s"] > 0.1:
        raise ConfigError("Random faults: 'num' is at least 1, 'longest_s' above 0.1.")
    workers = [worker for _, worker in setting.workers]
    return random_faults(seed, workers, duration_s=duration_s, **given)


def parse_rule(text: str) -> Rule[Any]:
    """`NAME` or `NAME: {KEY: VALUE}`."""
    name, parameters = _named(text, "rule", RULES)
    return make_rule(name, parameters)


def load_setting(path: Path) -> Setting:
    """A cluster's file: the fields of `Setting`."""
    return load_config(Setting, path)


def sized(setting: Setting, text: str) -> Setting:
    """The same with `P+D` prefill and decode workers."""
    numbers = text.split("+")
    if len(numbers) != 2 or not all(each.strip().isdecimal() for each in numbers):
        raise ConfigError(f"'{text}': give the workers as PREFILL+DECODE, for example 2+4.")
    num_prefill, num_decode = (int(each) for each in numbers)
    return replace(setting, num_prefill=num_prefill, num_decode=num_decode)


def _named(text: str, what: str, known: Sequence[str] | Mapping[str, Any]) -> tuple[str, Any]:
    """(name, its parameters) of `NAME` or `NAME: {KEY: VALUE}`."""
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"The {what} '{text[:_MAX_SHOWN]}' is not YAML: write NAME: {{KEY: VALUE}}."
        ) from error
    name: Any = parsed
    parameters: Any = {}
    if isinstance(parsed, dict) and len(parsed) == 1:
        [(name, parameters)] = parsed.items()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"'{text[:_MAX_SHOWN]}' is no {what}: give one of {', '.join(known)}.")
    return name, parameters or {}


def _parameters_of(make: Callable[..., Trace]) -> type:
    """The keywords of a workload as a dataclass, for strict parsing; its seed is ours."""
    fields = []
    for name, each in inspect.signature(make).parameters.items():
        default = field() if each.default is each.empty else field(default=each.default)
        if name != "seed":
            fields.append((name, each.annotation, default))
    return make_dataclass("parameters", fields, kw_only=True)


def _parsed(cls: type, parameters: Any, source: str) -> dict[str, Any]:
    return dict(vars(parse_config(cls, parameters, source=source)))
