"""The same load on this checkout and on an earlier commit of it, in turns:
`python -m bench.before COMMIT`.

Each side is a cluster of its own on this machine, 2 + 2 workers with the shipped model; both are
up throughout. Prints seconds and processor time of all its processes a token, as medians of the
rounds, and their ratios.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from penstock import AsyncClient
from penstock.load.generator import NO_RETRIES, OfferedLoad, make_prompts

ROOT = Path(__file__).resolve().parents[1]
# Run by both sides, each with its own code.
SERVE = """
import asyncio, sys
from pathlib import Path
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan

async def serve():
    checkpoint = Path("shipped_model/penstock-tiny")
    plan = ClusterPlan(checkpoint=checkpoint, num_prefill=2, num_decode=2, num_blocks=2048)
    async with LocalCluster(plan) as cluster:
        print(cluster.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(serve())
"""
# What is asked, by the numbers of answers that its requests want, in turn.
MIXES = {"one answer each": (1,), "n = 1, 4, 8 in turn": (1, 4, 8)}


@dataclass(slots=True)
class Side:
    """What a token took, round by round."""

    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Cluster:
    address: str
    process: psutil.Process

    def spent_s(self) -> float:
        """Processor time of all its processes so far."""
        everyone = [self.process, *self.process.children(recursive=True)]
        times = [each.cpu_times() for each in everyone]
        return sum(each.user + each.system for each in times)


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="penstock-before-") as folder:
        path = Path(folder) / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(path), commit], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


@contextlib.asynccontextmanager
async def serving(checkout: Path) -> AsyncIterator[Cluster]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE),
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        yield Cluster(address, psutil.Process(process.pid))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def measure(
    cluster: Cluster, side: Side, numbers: tuple[int, ...], load: OfferedLoad
) -> None:
    spent_s, started = cluster.spent_s(), time.perf_counter()
    num_tokens = 0
    ahead = iter(enumerate(make_prompts(load)))
    async with AsyncClient(cluster.address, retries=NO_RETRIES) as client:

        async def user() -> None:
            nonlocal num_tokens
            for number, prompt in ahead:
                answer = await client.generate(
                    token_ids=prompt,
                    n=numbers[number % len(numbers)],
                    max_tokens=load.output_tokens,
                    ignore_eos=True,
                    timeout=load.timeout_s,
                ).result()
                num_tokens += answer.usage.completion_tokens

        async with asyncio.TaskGroup() as users:
            for _ in range(load.concurrency):
                users.create_task(user())
    side.seconds.append((time.perf_counter() - started) / num_tokens)
    side.processor_s.append((cluster.spent_s() - spent_s) / num_tokens)


async def compare(commit: str, load: OfferedLoad, num_rounds: int) -> Table:
    """In each round both clusters are new: how one comes to share its work out is luck."""
    table = Table("load", "ms a token", "before", "ratio", "processor ms", "before", "ratio")
    with checked_out(commit) as earlier:
        for name, numbers in MIXES.items():
            ours, theirs = Side(), Side()
            for number in range(num_rounds):
                _say(f"{name}: round {number + 1} of {num_rounds}")
                async with serving(ROOT) as here, serving(earlier) as before:
                    for cluster in (here, before):
                        await measure(cluster, Side(), numbers, load)  # warms it up
                    turns = [(here, ours), (before, theirs)]
                    for cluster, side in turns if number % 2 else turns[::-1]:
                        await measure(cluster, side, numbers, load)
            table.add_row(
                name,
                *_cells(ours.seconds, theirs.seconds),
                *_cells(ours.processor_s, theirs.processor_s),
            )
    return table


def _cells(here: list[float], before: list[float]) -> list[str]:
    ours, theirs = statistics.median(here), statistics.median(before)
    return [f"{1e3 * ours:.3f}", f"{1e3 * theirs:.3f}", f"{ours / theirs:.2f}"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.before", description=__doc__)
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--concurrency", type=int, default=48)
    flags = parser.parse_args()
    load = OfferedLoad(
        num_requests=flags.requests,
        concurrency=flags.concurrency,
        prompt_tokens=64,
        output_tokens=64,
    )
    Console().print(asyncio.run(compare(flags.commit, load, flags.rounds)))


if __name__ == "__main__":
    main()
