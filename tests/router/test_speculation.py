"""What was placed counts as cached where it will be computed, until it is, or never will be."""

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

import router.speculation
from cluster.types import GrainHash, WorkerId
from router.speculation import Expectation, Speculation

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")


def grain(number: int) -> GrainHash:
    return GrainHash(number.to_bytes(16, "little"))


def chain(start: int, length: int) -> tuple[GrainHash, ...]:
    return tuple(grain(start + offset) for offset in range(length))


PROMPT = chain(0, 8)


def match(
    speculation: Speculation, hashes: Sequence[GrainHash], ready: dict[WorkerId, int], now: float
) -> dict[WorkerId, int]:
    ends: dict[int, int] = defaultdict(int)
    for worker, num in ready.items():
        ends[num] |= speculation.numbering.bit_of(worker)
    return speculation.match(hashes, sorted(ends.items()), now)


def test_a_sibling_counts_on_what_is_being_computed() -> None:
    speculation = Speculation()
    speculation.expect(A, PROMPT[:6], 0.0)
    assert match(speculation, PROMPT, {B: 2}, 1.0) == {A: 6}
    speculation.expect(A, PROMPT, 1.0, start=6)
    assert match(speculation, PROMPT, {B: 2}, 1.0) == {A: 8}
    speculation.check()


def test_what_is_ready_and_what_follows_it_make_one_prefix() -> None:
    speculation = Speculation()
    speculation.expect(A, PROMPT[:6], 0.0, start=3)
    assert match(speculation, PROMPT, {A: 3}, 0.0) == {A: 6}
    assert match(speculation, PROMPT, {A: 4, B: 4}, 0.0) == {A: 6}
    assert match(speculation, PROMPT, {A: 7}, 0.0) == {}
    assert match(speculation, PROMPT, {A: 2}, 0.0) == {}, "grain 2 is neither"
    assert match(speculation, PROMPT, {}, 0.0) == {}
    assert match(speculation, (), {}, 0.0) == {}


def test_nothing_expected_is_no_more_than_what_is_ready() -> None:
    assert match(Speculation(), PROMPT, {A: 3}, 0.0) == {}
    assert match(Speculation(), (), {}, 0.0) == {}


def test_a_request_that_ended_is_expected_no_more() -> None:
    speculation = Speculation()
    one = speculation.expect(A, PROMPT, 0.0)
    speculation.settle(one)
    speculation.settle(one)  # twice is once
    assert match(speculation, PROMPT, {}, 0.0) == {}
    assert speculation.num_grains == 0
    speculation.check()


def test_what_a_first_token_says_is_computed_counts_until_its_events_must_have_come() -> None:
    speculation = Speculation(linger_s=1.0)
    one = speculation.expect(A, PROMPT, 0.0)
    speculation.computed(one, 5.0)
    speculation.settle(one)  # as a short answer does: the events may still be on their way
    assert match(speculation, PROMPT, {}, 5.9) == {A: 8}
    assert match(speculation, PROMPT, {}, 6.0) == {}
    speculation.check()


def test_what_was_computed_lingers_beside_what_the_next_try_will_compute() -> None:
    """As where a worker ends an answer too early, right after its first token."""
    speculation = Speculation(linger_s=1.0)
    one = speculation.expect(A, PROMPT, 0.0)
    speculation.computed(one, 5.0)
    speculation.settle(one)
    again = speculation.expect(B, PROMPT, 5.5)
    speculation.check()
    assert speculation.match(PROMPT, {}, 5.9) == {A: 8, B: 8}
    assert speculation.match(PROMPT, {}, 6.0) == {B: 8}
    speculation.settle(again)
    speculation.check()
    assert speculation.num_grains == 0


def test_what_nobody_settled_lapses() -> None:
    speculation = Speculation(lapse_s=10.0)
    speculation.expect(A, PROMPT[:2], 0.0)
    speculation.expect(B, PROMPT[:2], 4.0)
    assert match(speculation, PROMPT, {}, 9.9) == {A: 2, B: 2}
    assert match(speculation, PROMPT, {}, 10.0) == {B: 2}
    assert match(speculation, PROMPT, {}, 14.0) == {}
    assert speculation.num_grains == 0


def test_a_lost_worker_takes_its_prompts_with_it_and_comes_back_without() -> None:
    speculation = Speculation()
    speculation.expect(A, PROMPT, 0.0)
    one = speculation.expect(B, PROMPT[:3], 0.0)
    speculation.forget(A)
    speculation.forget(C)
    assert match(speculation, PROMPT, {}, 0.0) == {B: 3}
    speculation.expect(A, PROMPT[:1], 0.0)
    assert match(speculation, PROMPT, {}, 0.0) == {A: 1, B: 3}
    speculation.settle(one)
    assert match(speculation, PROMPT, {}, 0.0) == {A: 1}
    speculation.check()


def test_over_its_bound_it_forgets_the_oldest() -> None:
    speculation = Speculation(max_grains=20)
    for number in range(10):
        speculation.expect(A, chain(100 * number, 8), 0.0)
        assert speculation.num_grains <= 20
    assert match(speculation, chain(900, 8), {}, 0.0) == {A: 8}
    assert match(speculation, chain(800, 8), {}, 0.0) == {A: 8}
    assert match(speculation, chain(700, 8), {}, 0.0) == {}
    speculation.expect(A, chain(5000, 30), 0.0)
    assert speculation.num_grains == 0
    speculation.check()


def test_what_a_worker_holds_already_is_expected_of_nobody_and_counts_for_no_bound() -> None:
    """Or a few long conversations that are cached push out what is expected of everybody."""
    speculation = Speculation(max_grains=20)
    placed = [speculation.expect(A, chain(100 * n, 50), 0.0, start=48) for n in range(10)]
    assert speculation.num_grains == 20
    assert match(speculation, chain(0, 50), {A: 48}, 0.0) == {A: 50}
    whole = speculation.expect(B, chain(100, 50), 0.0, start=49)
    assert speculation.num_grains == 20, "it is expected of another, too"
    for each in (*placed, whole):
        speculation.settle(each)
    assert speculation.num_grains == 0
    speculation.check()


@pytest.mark.parametrize("is_longest_first", [False, True])
def test_a_lost_workers_prompts_are_forgotten_in_about_as_many_steps_as_they_are(
    is_longest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each branches off the same prefix elsewhere: the loop stands still meanwhile."""
    speculation, num_prompts, steps = Speculation(), 200, []
    for depth in sorted(range(1, num_prompts + 1), reverse=is_longest_first):
        speculation.expect(A, chain(0, depth) + chain(1000 + depth, 1), 0.0)
    shared = router.speculation._num_shared
    monkeypatch.setattr(
        router.speculation, "_num_shared", lambda *args: steps.append(0) or shared(*args)
    )
    speculation.forget(A)
    assert len(steps) <= 4 * num_prompts
    assert speculation.num_grains == 0


def test_many_splits_are_undone_in_one_go() -> None:
    """Of each of which one that ends was the last cause: here it computes every other grain."""
    speculation, num = Speculation(), 2000
    prompt = chain(0, num)
    speculation.expect(A, prompt, 0.0, start=num - 1)
    others = [speculation.expect(B, prompt[:n], 0.0, start=n - 1) for n in range(1, num, 2)]
    last = speculation.expect(B, prompt, 0.0)
    for other in others:
        speculation.settle(other)
    begun = time.thread_time()
    assert match(speculation, prompt, {A: num - 1}, 0.0) == {A: num}
    matched = time.thread_time()
    speculation.settle(last)
    assert time.thread_time() - matched < 8 * (matched - begun)
    assert match(speculation, prompt, {A: num - 1}, 0.0) == {A: num}
    speculation.check()


@dataclass(slots=True)
class Model:
    """The same, said as slowly and plainly as possible: who was first to ask for what."""

    owned: dict[tuple[WorkerId, GrainHash], Expectation] = field(default_factory=dict)
    computed: set[Expectation] = field(default_factory=set)

    def expect(self, by: Expectation, worker: WorkerId, hashes: tuple[GrainHash, ...]) -> None:
        for each in hashes:
            self.owned.setdefault((worker, each), by)

    def settle(self, by: Expectation) -> None:
        """What is computed lingers, whatever becomes of the request."""
        if by not in self.computed:
            self.owned = {key: owner for key, owner in self.owned.items() if owner is not by}

    def forget(self, worker: WorkerId) -> None:
        self.owned = {key: owner for key, owner in self.owned.items() if key[0] != worker}

    def match(
        self, hashes: tuple[GrainHash, ...], ready: dict[WorkerId, int]
    ) -> dict[WorkerId, int]:
        matched = {}
        for worker in (A, B, C):
            depth = ready.get(worker, 0)
            while depth < len(hashes) and (worker, hashes[depth]) in self.owned:
                depth += 1
            if depth > ready.get(worker, 0):
                matched[worker] = depth
        return matched


@pytest.mark.parametrize("seed", range(60))
def test_any_sequence_equals_the_plain_model(seed: int) -> None:
    random_numbers = random.Random(seed)
    speculation, model = Speculation(lapse_s=1e9, linger_s=1e9), Model()
    prompts = [chain(0, 3) + chain(10 * n, 5) for n in range(1, 5)]
    prompts += [prompts[0][:6] + chain(100, 4), prompts[0][:6] + chain(110, 2), prompts[1][:5]]
    prompts += [prompts[0][:1], prompts[0][:2], chain(200, 3), ()]
    placed: list[Expectation] = []
    for number in range(80):
        worker = random_numbers.choice((A, B, C))
        match random_numbers.randrange(8):
            case 0 if placed:
                settled = random_numbers.choice(placed)
                speculation.settle(settled)
                model.settle(settled)
            case 2 if placed:
                computed = random_numbers.choice(placed)
                speculation.computed(computed, number)
                model.computed.add(computed)
            case 1 if random_numbers.random() < 0.3:
                speculation.forget(worker)
                model.forget(worker)
            case 3 if random_numbers.random() < 0.3:  # its bit may be another's from now on
                speculation.numbering.free(speculation.numbering.give_up(worker))
            case _:
                hashes, start = random_numbers.choice(prompts), random_numbers.randrange(11)
                placed.append(speculation.expect(worker, hashes, number, start=start))
                model.expect(placed[-1], worker, hashes[start:])
        speculation.check()
        assert speculation.num_grains == len({each for _, each in model.owned})
        prompt = random_numbers.choice(prompts)
        ready = {
            each: random_numbers.randrange(1, 9) for each in (A, B) if random_numbers.random() < 0.5
        }
        assert match(speculation, prompt, ready, number) == model.match(prompt, ready)


def test_of_very_much_that_lapses_at_once_a_call_forgets_a_part() -> None:
    """Or whoever comes next would wait for all of it."""
    speculation, num = Speculation(lapse_s=10.0), 4000
    for number in range(10):
        speculation.expect(A, chain(num * number, num), 0.0)
    left = []
    while not left or left[-1]:
        speculation.lapse(10.0)
        speculation.check()
        left.append(speculation.num_grains)
    assert left == [28_000, 16_000, 4_000, 0]
