"""KV transfer on one machine: every transport beside its yardsticks, and what a hand-over costs.

    python -m bench.kv_transfer [--quick] [--doors tcp ...] [--json FILE] [--markdown FILE]

Yardsticks (memcpy, a bare socket, NIXL's own API) and transports take turns in every round, so
that a busy machine slows both: compare ratios. Buffers rotate through pools that are larger
than the last-level cache.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import machine
from bench.kv_cases import Case, parse_case
from bench.kv_contest import Arena, Outcome
from bench.kv_figures import as_json, sheets
from bench.kv_ways import Rounds
from bench.sheets import Sheet
from cluster.errors import ConfigError
from kv_transfer.doors import DOORS

CASES = ("64KiB", "1MiB", "64MiB", "4000x16KiB")
LEAST_POOL_MIB, MOST_POOL_MIB = 256, 1024
MOVE_BYTES = 4 * 2**20  # a turn moves about so much: one move, or several small ones
MEMORY = Path("/dev/shm")

Say = Callable[[str], None]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=list(DOORS), metavar="DOOR")
    parser.add_argument("--cases", nargs="+", type=parse_case, metavar="CASE",
                        default=[parse_case(text) for text in CASES])  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pool-mib", type=int, default=_pool_mib())
    parser.add_argument("--quick", action="store_true", help="few rounds and small pools")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    flags = parser.parse_args(arguments)
    if flags.quick:
        flags.rounds, flags.pool_mib = 5, LEAST_POOL_MIB
    return flags


def _pool_mib() -> int:
    """Twice the last-level cache, within reason."""
    return min(max(2 * machine.last_level_cache_bytes() // 2**20, LEAST_POOL_MIB), MOST_POOL_MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a run has to say."""

    machine: str
    sheets: Sequence[Sheet]
    skipped: Sequence[str]
    figures: dict[str, Any]

    def as_markdown(self) -> str:
        parts = [self.machine, *self.skipped, *(sheet.as_markdown() for sheet in self.sheets)]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> str:
        value = {"machine": self.machine, "skipped": list(self.skipped), **self.figures}
        return json.dumps(value, indent=1) + "\n"


async def run(flags: argparse.Namespace, say: Say) -> Report:
    described = machine.describe()
    outcomes, skipped = await _transports(flags, say)
    pool_bytes = flags.pool_mib * 2**20
    return Report(
        machine=f"{described}; pools of {flags.pool_mib} MiB, {flags.rounds} rounds",
        sheets=sheets(outcomes, pool_bytes),
        skipped=skipped,
        figures=as_json(outcomes, pool_bytes),
    )


async def _transports(flags: argparse.Namespace, say: Say) -> tuple[list[Outcome], list[str]]:
    """What was measured, and which transports could not be, with the reason."""

    def rounds(case: Case) -> Rounds:
        return Rounds(num_rounds=flags.rounds, num_moves=max(1, MOVE_BYTES // case.num_bytes))

    outcomes, skipped = [], []
    in_memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=in_memory) as run_dir:
        arena = Arena(run_dir=Path(run_dir), pool_bytes=flags.pool_mib * 2**20, cases=flags.cases)
        try:
            async with arena.far:
                for door in flags.doors:
                    try:
                        outcomes.append(await arena.run(door, rounds, say))
                    except ConfigError as error:
                        skipped.append(f"{door} is left out: {error}")
        finally:
            arena.close()
    return outcomes, skipped


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse(arguments)
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        report = asyncio.run(run(flags, status.update))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(report.machine, *report.skipped, sep="\n")
    for sheet in report.sheets:
        console.print(sheet.as_rich())
    for path, text in ((flags.json, report.as_json()), (flags.markdown, report.as_markdown())):
        if path:
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
