"""A setting from what the workers of a running cluster report: its costs, memory and links."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

from cluster.errors import ConfigError
from cluster.types import DecodeCost, KvLayout, LinkCost, LoadReport, Member, PrefillCost, Role
from simulator.setting import PairLink, Setting, TokenKv, WorkerMake

Reported = tuple[Member, LoadReport]
_LEAST_BYTE_S = 1e-15


def fitted(setting: Setting, workers: Iterable[Reported]) -> Setting:
    """`setting` with the numbers of this cluster; what workers do not report stays.

    Workers of a role are taken to be alike: the one in the middle stands for all.

    Raises ConfigError while a worker has not computed enough to know its costs.
    """
    reported = list(workers)
    by_role = {role: [each for each in reported if each[0].role is role] for role in Role}
    if not by_role[Role.DECODE]:
        raise ConfigError("No decode worker reports: there is no cluster to simulate.")
    links = [link for _, report in reported for link in report.links or ()]
    return replace(
        setting,
        num_prefill=len(by_role[Role.PREFILL]),
        num_decode=len(by_role[Role.DECODE]),
        # Who decodes computes prompts as quickly as who does nothing else.
        prefill=_make(setting.prefill, by_role[Role.PREFILL] or by_role[Role.DECODE]),
        decode=_make(setting.decode, by_role[Role.DECODE]),
        model=_model(by_role[Role.DECODE][0][0].worker.fingerprint.layout),
        link=_link(links) if links else setting.link,
    )


def _make(make: WorkerMake, workers: Sequence[Reported]) -> WorkerMake:
    member, report = workers[0]
    block_size = member.worker.fingerprint.layout.block_size
    return replace(
        make,
        prefill_cost=_middle_prefill([report.prefill_cost for _, report in workers]),
        decode_cost=_middle_decode([report.decode_cost for _, report in workers]),
        cache_tokens=report.num_blocks * block_size,
        block_size=block_size,
        max_sequences=member.max_sequences,
    )


def _middle_prefill(costs: Sequence[PrefillCost]) -> PrefillCost:
    """Finds the cost of a usual chunk: coefficients of several fits mean nothing when mixed."""
    ordered = sorted(costs, key=lambda cost: cost.seconds(512, 512))
    middle = ordered[len(ordered) // 2]
    if not middle.seconds(1, 0) > 0.0:
        raise ConfigError("The workers do not know their costs yet: send them some requests.")
    return middle


def _middle_decode(costs: Sequence[DecodeCost]) -> DecodeCost:
    ordered = sorted(costs, key=lambda cost: cost.seconds(4096, 8))
    return ordered[len(ordered) // 2]


def _model(layout: KvLayout) -> TokenKv:
    return TokenKv(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_model_heads,
        head_dim=layout.head_dim,
        dtype=layout.dtype,
    )


def _link(links: Sequence[LinkCost]) -> PairLink:
    byte_s = median(link.s_per_byte for link in links)
    return PairLink(
        setup_s=median(link.setup_s for link in links),
        bytes_per_s=1.0 / max(byte_s, _LEAST_BYTE_S),
    )
