"""What a hand-over costs its user, on real clusters: the wait for the second token beyond a
decode step, with the layers sent while the prompt is computed and all at the end; and what the
first request of a fresh pair costs, restarts included.

The model is small and its KV is not: a prompt of 8,192 tokens takes seconds on two cores.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

from bench.random_llama import LlamaShape, write_random_llama
from cluster.secrets import load_secrets
from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan
from deploy.vitals import all_of, until_serving
from penstock import AsyncClient
from penstock.load.generator import NO_RETRIES, OfferedLoad, measure
from penstock.load.report import Measured
from prefill_worker.config import PrefillWorkerConfig

SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "shipped_model" / "penstock-tiny"
SHAPE = LlamaShape(num_layers=8, hidden_size=384, num_heads=6, num_kv_heads=6,
                   intermediate_size=1024, vocab_size=2048, context_length=8320)  # fmt: skip
KV_BYTES_PER_TOKEN = SHAPE.num_layers * 2 * SHAPE.hidden_size * 4
BLOCK_SIZE = 16
NUM_BLOCKS = 2 * SHAPE.context_length // BLOCK_SIZE  # two of the longest prompts
OUTPUT_TOKENS = 10
FRESH_TOKENS = 128
RESTART_S = 60.0
SUPERVISION = Supervision(first_backoff_s=0.1)
MOST_SHARE = 0.05  # of the prefill's time, from LEAST_TOKENS up
LEAST_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOverSetting:
    door: str
    overlap: bool

    def __str__(self) -> str:
        return f"{self.door}, {'overlapped' if self.overlap else 'at the end'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOverCost:
    """Medians over requests that had the cluster to themselves, in seconds."""

    door: str
    overlap: bool
    prompt_tokens: int
    num_requests: int  # handed over: only these are measured
    num_recomputed: int  # by the decode worker, because the hand-over failed
    num_bytes: int  # of one
    prefill_s: float
    ttft_s: float
    gap_s: float  # from the first token to the second
    step_s: float  # between later tokens
    visible_s: float  # by the decode worker's clock: first token here to ready to decode

    @property
    def cost_s(self) -> float:
        return self.gap_s - self.step_s

    @property
    def share(self) -> float:
        """Of the prefill's time."""
        return self.cost_s / self.prefill_s

    @property
    def is_met(self) -> bool | None:
        """None where there is no target."""
        has_target = self.overlap and self.prompt_tokens >= LEAST_TOKENS
        return self.share <= MOST_SHARE if has_target else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """The first and the second request of a pair that has just met."""

    door: str
    after: str
    first_ttft_s: float
    second_ttft_s: float
    first_gap_s: float
    second_gap_s: float
    num_recomputed: int  # of the two


def settings(doors: Sequence[str]) -> list[HandOverSetting]:
    """Overlapped and not, where the prefill worker can be told."""
    overlaps = (True, False) if can_be_told() else (True,)
    return [HandOverSetting(door=door, overlap=overlap) for door in doors for overlap in overlaps]


def can_be_told() -> bool:
    return "overlap" in {field.name for field in fields(PrefillWorkerConfig)}


def write_model(folder: Path) -> Path:
    write_random_llama(folder, SHAPE, tokenizer_from=SHIPPED_MODEL)
    return folder


class Clusters:
    """One transport's clusters, a setting each, side by side: they take turns."""

    def __init__(self, model: Path, door: str) -> None:
        self._model = model
        self._settings = settings([door])
        self._door = door
        self._dice = random.Random(0)
        self._open: dict[HandOverSetting, LocalCluster] = {}

    async def fresh(self) -> list[Fresh]:
        """Of the first setting's pair: as it joined, and after its decode worker was killed."""
        cluster = self._open[self._settings[0]]
        found = [await self._fresh(cluster, "start")]
        await _kill(cluster, "decode-0")
        found.append(await self._fresh(cluster, "decode worker's restart"))
        await _kill(cluster, "prefill-0")
        found.append(await self._fresh(cluster, "prefill worker's restart"))
        return found

    async def costs(self, prompt_tokens: int, num_rounds: int) -> list[HandOverCost]:
        requests: dict[HandOverSetting, list[Measured]] = {
            setting: [] for setting in self._settings
        }
        for _ in range(num_rounds):
            for setting, cluster in self._open.items():
                requests[setting].append(await self._ask(cluster, prompt_tokens))
        return [_cost(setting, prompt_tokens, found) for setting, found in requests.items()]

    async def warm_up(self) -> None:
        for cluster in self._open.values():
            for _ in range(2):
                await self._ask(cluster, FRESH_TOKENS)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for setting in self._settings:
                cluster = LocalCluster(self._plan(setting), supervision=SUPERVISION)
                self._open[setting] = await stack.enter_async_context(cluster)
            yield

    def _plan(self, setting: HandOverSetting) -> ClusterPlan:
        return ClusterPlan(
            checkpoint=self._model,
            num_threads=1,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            transports=(setting.door,),
            router={"disaggregate": "always"},
            prefill={"overlap": setting.overlap} if can_be_told() else {},
        )

    async def _fresh(self, cluster: LocalCluster, after: str) -> Fresh:
        first, second = [await self._ask(cluster, FRESH_TOKENS) for _ in range(2)]
        return Fresh(
            door=self._door,
            after=after,
            first_ttft_s=first.ttft_s,
            second_ttft_s=second.ttft_s,
            first_gap_s=first.gaps_s[0],
            second_gap_s=second.gaps_s[0],
            num_recomputed=first.recomputes + second.recomputes,
        )

    async def _ask(self, cluster: LocalCluster, prompt_tokens: int) -> Measured:
        """A prompt that no other begins like. Raises RuntimeError where it fails."""
        prompt = [self._dice.randrange(16, SHAPE.vocab_size) for _ in range(prompt_tokens)]
        load = OfferedLoad(output_tokens=OUTPUT_TOKENS)
        async with AsyncClient(cluster.address, retries=NO_RETRIES) as client:
            measured = await measure(client, prompt, load, time.perf_counter())
        if measured.error:
            raise RuntimeError(f"A prompt of {prompt_tokens} tokens failed: {measured.error}.")
        return measured


async def _kill(cluster: LocalCluster, name: str) -> None:
    """Returns when its successor serves."""
    num_restarts, router = cluster.num_restarts, cluster.children["router"].address
    cluster.children[name].kill()
    async with asyncio.timeout(RESTART_S):
        while cluster.num_restarts == num_restarts:  # noqa: ASYNC110 - another process starts
            await asyncio.sleep(0.02)
        secrets = load_secrets(cluster.secrets_file)
        await until_serving(router, secrets, all_of(["prefill-0", "decode-0"]))


def _cost(
    setting: HandOverSetting, prompt_tokens: int, requests: Sequence[Measured]
) -> HandOverCost:
    found = [one for one in requests if one.is_remote and not one.recomputes]
    if not found:
        raise RuntimeError(f"No prompt of {prompt_tokens} tokens was handed over ({setting}).")
    return HandOverCost(
        door=setting.door,
        overlap=setting.overlap,
        prompt_tokens=prompt_tokens,
        num_requests=len(found),
        num_recomputed=len(requests) - len(found),
        num_bytes=found[0].transferred_bytes,
        prefill_s=median(one.prefill_s for one in found),
        ttft_s=median(one.ttft_s for one in found),
        gap_s=median(one.gaps_s[0] for one in found),
        visible_s=median(one.transfer_visible_s for one in found),
        step_s=median(gap for one in found for gap in one.gaps_s[1:]),
    )


def num_rounds(prompt_tokens: int, rounds: int) -> int:
    """Long prompts less often."""
    return max(2, rounds if prompt_tokens <= 512 else rounds * 1024 // prompt_tokens)


async def run(
    model: Path,
    door: str,
    lengths: Sequence[int],
    rounds: int,
    say: Callable[[str], None],
) -> tuple[list[HandOverCost], list[Fresh]]:
    """One transport's figures. Raises StartupError where its workers do not start."""
    clusters, costs = Clusters(model, door), []
    say(f"{door}: starting its clusters")
    async with clusters.running():
        say(f"{door}: fresh pairs")
        fresh = await clusters.fresh()
        await clusters.warm_up()
        for length in lengths:
            say(f"{door}: hand-overs of {length} tokens")
            costs += await clusters.costs(length, num_rounds(length, rounds))
    return costs, fresh
