"""A batcher and an echo engine, stepped by hand."""

from collections import defaultdict

from cluster.types import ComputeRequest, GenerationParams, PrefillCost, SamplingParams
from engine.batcher import Batcher
from engine.block_pool import BlockPool
from engine.budget import Budget
from engine.echo import EchoEngine, echo_layout
from engine.sequence import Sequence

NO_COST = PrefillCost(c0=0.0, c1=0.0)


def request(
    name: str,
    prompt: list[int],
    *,
    max_tokens: int = 8,
    n: int = 1,
    temperature: float = 0.0,
    due_s: float = 0.0,
) -> ComputeRequest:
    sampling = SamplingParams(seed=7, temperature=temperature)
    params = GenerationParams(sampling=sampling, max_tokens=max_tokens, num_choices=n)
    return ComputeRequest(
        request_id=name, prompt_ids=prompt, params=params, hash_key=b"k" * 32, due_s=due_s
    )


class Rig:
    """A batcher and an echo engine, stepped by hand."""

    def __init__(
        self, *, num_blocks: int = 64, block_size: int = 4, grain: int = 4, **budget: float
    ):
        self.pool = BlockPool(num_blocks, block_size, grain)
        limits = {"max_sequences": 16, "max_tokens": 64, **budget}
        self.batcher = Batcher(self.pool, Budget(**limits), prefill_cost=lambda: NO_COST)  # type: ignore[arg-type]
        self.engine = EchoEngine(echo_layout(num_blocks=num_blocks, block_size=block_size))
        self.answers: dict[str, list[int]] = defaultdict(list)

    def add(self, request: ComputeRequest) -> Sequence:
        sequence = Sequence(request, num_choices=request.params.num_choices)
        self.batcher.add(sequence)
        return sequence

    def step(self) -> bool:
        batch = self.batcher.next_batch()
        if batch is None:
            return False
        for drawn in self.batcher.complete(self.engine.forward(batch)):
            if drawn.token is None:
                continue
            sequence = drawn.sequence
            self.answers[sequence.sequence_id].append(drawn.token.token_id)
            if len(sequence.output_ids) >= sequence.params.max_tokens:
                self.batcher.drop(sequence)
        self.batcher.check()
        return True

    def run(self) -> dict[str, list[int]]:
        for _ in range(10_000):
            if not self.step():
                break
        assert not self.batcher.running
        assert not self.batcher.waiting
        assert self.pool.num_held == 0
        return dict(self.answers)


def alone(requests: list[ComputeRequest]) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    for each in requests:
        rig = Rig(num_blocks=400)
        rig.add(each)
        answers |= rig.run()
    return answers


class Clocked(Rig):
    """A rig whose time is told by hand, and which says who runs."""

    def __init__(self, **limits: int) -> None:
        super().__init__(**{"num_blocks": 4096, "max_tokens": 512, **limits})
        self.now = 0.0
        self.batcher = Batcher(
            self.pool,
            self.batcher.budget,
            prefill_cost=self.batcher._prefill_cost,
            clock=lambda: self.now,
        )

    def num_running(self, name: str) -> int:
        return len(self.active(name))

    def active(self, name: str) -> list[Sequence]:
        running = [s for s in self.batcher.running if s not in self.batcher.paused]
        return [s for s in running if s.request_id == name]

    def pause(self, name: str) -> list[Sequence]:
        everyone = [*self.batcher.running, *self.batcher.waiting]
        mine = [s for s in everyone if s.request_id == name]
        for sequence in mine:
            self.batcher.pause(sequence)
        return mine

    def run_until_idle(self) -> None:
        for _ in range(10_000):
            if not self.step():
                return

    def steps(self, num: int) -> None:
        for _ in range(num):
            assert self.step()
