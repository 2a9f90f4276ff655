"""KV transfer on one machine: every transport beside its yardsticks, and what a hand-over costs.

    python -m bench.kv_transfer [--quick] [--doors tcp ...] [--json FILE] [--markdown FILE]

Yardsticks (memcpy, a bare socket, NIXL's own API) and transports take turns in every round, so
that a busy machine slows both: compare ratios. Buffers rotate through pools that are larger
than the last-level cache.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import hand_over, hand_over_figures, kv_figures, machine
from bench.hand_over import Fresh, HandOverCost
from bench.kv_cases import Case, parse_case
from bench.kv_contest import Arena, Outcome
from bench.kv_ways import Rounds
from bench.sheets import Sheet
from cluster.errors import ConfigError, StartupError
from kv_transfer.doors import DOORS
from worker.config import WorkerConfig

PARTS = ("transports", "hand_over")
CASES = ("64KiB", "1MiB", "64MiB", "4000x16KiB")
LENGTHS = (128, 512, 2048, 8192)
LEAST_POOL_MIB, MOST_POOL_MIB = 256, 1024
MOVE_BYTES = 4 * 2**20  # a turn moves about so much: one move, or several small ones
CASE_S = 8.0  # a case of one transport takes about so long at most
PIPE_COLUMNS = 150
# Whose hand-overs are measured: gloo is how NCCL's protocol is tested, and nobody serves with it.
SERVING_DOORS = [door for door in DOORS if door not in ("gloo", "nccl")]
MEMORY = Path("/dev/shm")

Say = Callable[[str], None]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--doors", nargs="+", choices=DOORS, metavar="DOOR", help="default: all")
    parser.add_argument("--cases", nargs="+", type=parse_case, metavar="CASE",
                        default=[parse_case(text) for text in CASES])  # fmt: skip
    parser.add_argument("--lengths", nargs="+", type=int, metavar="TOKENS", help="of hand-overs")
    parser.add_argument("--rounds", type=int, help="of moves")
    parser.add_argument("--hand-over-rounds", type=int, default=6, help="of short prompts")
    parser.add_argument("--tcp-streams", type=int, default=_worker_default("tcp_streams"))
    parser.add_argument("--pool-mib", type=int)
    parser.add_argument("--quick", action="store_true", help="few rounds, small pools, no 8,192")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    flags = parser.parse_args(arguments)
    flags.lengths = flags.lengths or (LENGTHS[:3] if flags.quick else LENGTHS)
    flags.rounds = flags.rounds or (6 if flags.quick else 20)
    flags.pool_mib = flags.pool_mib or (LEAST_POOL_MIB if flags.quick else _pool_mib())
    return flags


def _worker_default(name: str) -> Any:
    return next(field.default for field in fields(WorkerConfig) if field.name == name)


def _pool_mib() -> int:
    """Twice the last-level cache, within reason."""
    return min(max(2 * machine.last_level_cache_bytes() // 2**20, LEAST_POOL_MIB), MOST_POOL_MIB)


@dataclass(slots=True, kw_only=True, eq=False)
class Findings:
    """Everything that a run has to say."""

    about: str
    pool_bytes: int
    outcomes: list[Outcome] = field(default_factory=list)
    costs: list[HandOverCost] = field(default_factory=list)
    fresh: list[Fresh] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # and why
    chosen: list[str] = field(default_factory=list)  # by a measurement of this machine

    @property
    def sheets(self) -> list[Sheet]:
        found = kv_figures.sheets(self.outcomes) if self.outcomes else []
        return found + (hand_over_figures.sheets(self.costs, self.fresh) if self.costs else [])

    def as_markdown(self) -> str:
        parts = [
            self.about,
            *self.chosen,
            *self.left_out,
            *(sheet.as_markdown() for sheet in self.sheets),
        ]
        return "\n\n".join(parts)

    def as_json(self) -> str:
        figures = kv_figures.as_json(self.outcomes)
        figures |= hand_over_figures.as_json(self.costs, self.fresh)
        return json.dumps(
            {"about": self.about, "chosen": self.chosen, "left_out": self.left_out} | figures,
            indent=1,
        )


async def run(flags: argparse.Namespace, say: Say) -> Findings:
    about = f"{machine.describe()}; pools of {flags.pool_mib} MiB, {flags.rounds} rounds"
    findings = Findings(about=about, pool_bytes=flags.pool_mib * 2**20)
    if "transports" in flags.parts:
        await _measure_transports(flags, findings, say)
    if "hand_over" in flags.parts:
        await _measure_hand_overs(flags, findings, say)
    return findings


async def _measure_transports(flags: argparse.Namespace, findings: Findings, say: Say) -> None:
    def rounds(case: Case) -> Rounds:
        num_moves = max(1, MOVE_BYTES // case.num_bytes)
        return Rounds(num_rounds=flags.rounds, num_moves=num_moves, limit_s=CASE_S)

    in_memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=in_memory) as folder:
        arena = Arena(
            run_dir=Path(folder),
            pool_bytes=findings.pool_bytes,
            cases=flags.cases,
            num_tcp_streams=flags.tcp_streams,
        )
        with contextlib.closing(arena):
            async with arena.far:
                for door in flags.doors or DOORS:
                    try:
                        findings.outcomes.append(await arena.run(door, rounds, say))
                    except ConfigError as error:
                        findings.left_out.append(f"{door} is left out: {error}")
        findings.chosen += [f"{what}: {how}" for what, how in arena.measurements.choices.items()]


async def _measure_hand_overs(flags: argparse.Namespace, findings: Findings, say: Say) -> None:
    if not hand_over.can_be_told():
        findings.left_out.append("Layers at the end: this prefill worker always overlaps.")
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        model = hand_over.write_model(Path(folder) / "random")
        for door in flags.doors or SERVING_DOORS:
            try:
                costs, fresh = await hand_over.run(
                    model, door, flags.lengths, flags.hand_over_rounds, say
                )
            except StartupError as error:
                reason = str(error).partition("\n")[0]
                findings.left_out.append(f"Hand-overs by {door} are left out: {reason}")
            else:
                findings.costs += costs
                findings.fresh += fresh


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse(arguments)
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        say = status.update if progress.is_terminal else progress.print
        findings = asyncio.run(run(flags, say))
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    said = (findings.about, *findings.chosen, *findings.left_out)
    console.print(*said, sep="\n", markup=False)
    for sheet in findings.sheets:
        console.print(sheet.as_rich())
    for path, text in ((flags.json, findings.as_json()), (flags.markdown, findings.as_markdown())):
        if path:
            path.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
