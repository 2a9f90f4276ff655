"""The policy in force through files, stores and restarts, without a router around it."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ConfigError, InvalidRequest, StoreUnavailable
from cluster.redis_store import RedisStore
from cluster.sealed_store import SealedStore
from cluster.store import MemoryStore, Store
from router.index import PrefixIndex
from router.placer import Placer
from router.policy import Policy
from router.policy_life.file_watch import PolicyFile
from router.policy_life.keeper import Came, PolicyKeeper
from router.policy_life.store import FileRollouts, RolloutStore, SharedRollouts
from router.pool import Pool
from router.rollout.canary import Judgement, Verdict
from router.rollout.generations import Generations
from router.rollout.history import Author
from router.rollout.rollout import encode_rollout
from tests.redis_server import redis_server
from tests.router.broken_policies import BROKEN
from tests.router.policy_texts import offer, policy_text


class Away:
    """A store that nobody reaches until it is back."""

    def __init__(self, store: MemoryStore) -> None:
        self._rollouts = SharedRollouts(store)
        self.source = self._rollouts.source
        self.is_away = True

    async def load(self) -> bytes | None:
        return await self._reached().load()

    async def swap(self, expected: bytes | None, value: bytes) -> bool:
        return await self._reached().swap(expected, value)

    def _reached(self) -> SharedRollouts:
        if self.is_away:
            raise StoreUnavailable("It is away.")
        return self._rollouts


def keeper(file: Path | None = None, store: RolloutStore | None = None) -> PolicyKeeper:
    placer = Placer(Pool(), PrefixIndex(1 << 20), 16, Generations(Policy()))
    return PolicyKeeper(
        placer=placer,
        store=store or SharedRollouts(MemoryStore()),
        file=PolicyFile(file) if file else None,
        default=offer(1.0),
    )


def in_force(of: PolicyKeeper) -> float:
    """What requests are placed by says the same as what is told."""
    live = of._placer.generations.active
    assert live.number == of.rollout.active.number
    return live.policy.queue.stretch


async def looks(of: PolicyKeeper, num: int = 2) -> None:
    for _ in range(num):
        await of.look()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text(2.0))
    return path


async def test_the_default_holds_until_something_is_said() -> None:
    alone = keeper()
    await alone.start()
    assert (alone.rollout.active.number, in_force(alone)) == (1, 1.0)
    with pytest.raises(InvalidRequest, match="has no policy file"):
        await alone.reload()


async def test_a_file_is_followed(path: Path) -> None:
    followed = keeper(path)
    await followed.start()
    assert in_force(followed) == 2.0
    await looks(followed, 3)
    assert followed.rollout.active.number == 1
    path.write_text(policy_text(3.0))
    await looks(followed)
    assert (in_force(followed), followed.rollout.active.number) == (3.0, 2)
    assert followed.rollout.active.source == str(path)
    path.write_text(policy_text(2.0))  # and back
    await looks(followed)
    assert (in_force(followed), followed.rollout.active.number) == (2.0, 3)


async def test_a_file_that_is_being_written_is_not_believed(path: Path) -> None:
    followed = keeper(path)
    await followed.start()
    for text in (policy_text(3.0), "", policy_text(4.0)[:90], policy_text(5.0)):
        path.write_text(text)
        await followed.look()
    assert (in_force(followed), followed.reloads.num_failures) == (2.0, 0)
    await followed.look()
    assert in_force(followed) == 5.0


async def test_a_symlink_may_be_swapped_above_the_file(tmp_path: Path) -> None:
    """As Kubernetes replaces a ConfigMap: the file's own path is never written."""
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "policy.yaml").write_text(policy_text(10.0 * number))
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "policy.yaml"
    path.symlink_to("..data/policy.yaml")
    followed = keeper(path)
    await followed.start()
    assert in_force(followed) == 10.0
    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").replace(tmp_path / "..data")
    await looks(followed)
    assert in_force(followed) == 20.0


async def test_a_wrong_file_is_told_once_and_the_last_good_one_goes_on(path: Path) -> None:
    followed = keeper(path)
    await followed.start()
    path.write_text(policy_text(3.0).replace("stretch", "strech"))
    await looks(followed, 4)
    assert (in_force(followed), followed.reloads.num_failures) == (2.0, 1)
    assert not followed.reloads.is_last_good
    assert "did you mean 'stretch'?" in followed.reloads.error
    path.unlink()
    await looks(followed, 4)
    assert (in_force(followed), followed.reloads.num_failures) == (2.0, 2)
    assert "cannot be read" in followed.reloads.error
    path.write_text(policy_text(4.0))
    await looks(followed)
    assert (in_force(followed), followed.reloads.is_last_good) == (4.0, True)
    assert followed.reloads.error == ""


@pytest.mark.parametrize("text", [policy_text(-1.0), ""], ids=["value", "nothing"])
async def test_a_router_does_not_start_by_a_wrong_file(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        await keeper(path).start()


@pytest.mark.slow
async def test_a_hundred_broken_policies_never_take_effect() -> None:
    """Each is refused with its sentence, and requests are placed as before."""
    asked = keeper()
    await asked.start()
    before = asked._placer.generations.active
    for name, broken in BROKEN.items():
        text = broken.text
        if isinstance(text, bytes):
            continue  # no RPC carries it as text
        with pytest.raises(InvalidRequest) as refused:
            await asked.apply(text, name)
        assert broken.sentence in refused.value.message, name
    assert asked._placer.generations.active is before
    assert asked.reloads.num_failures >= 95
    assert asked.reloads.num_attempts == asked.reloads.num_failures


@pytest.mark.slow
async def test_nor_do_they_from_a_file(path: Path) -> None:
    followed = keeper(path)
    await followed.start()
    for name, broken in BROKEN.items():
        path.write_bytes(broken.text if isinstance(broken.text, bytes) else broken.text.encode())
        with pytest.raises(InvalidRequest):
            await followed.reload()
        assert in_force(followed) == 2.0, name
    assert followed.reloads.num_failures == len(BROKEN) >= 100


async def test_operators_apply_and_roll_back() -> None:
    asked = keeper()
    await asked.start()
    applied = await asked.apply(policy_text(2.0), "ops")
    assert (applied.came, applied.generation.number, in_force(asked)) == (Came.APPLIED, 2, 2.0)
    again = await asked.apply("# the same\n" + policy_text(2.0), "ops")
    assert (again.came, again.generation.number) == (Came.UNCHANGED, 2)
    back = await asked.roll_back("it was a mistake")
    assert (back.came, back.generation.number, in_force(asked)) == (Came.ROLLED_BACK, 3, 1.0)
    assert "it was a mistake" in asked.rollout.why
    assert (await asked.apply(policy_text(3.0), "ops", 0.1)).came is Came.CANARY
    assert in_force(asked) == 1.0
    await asked.roll_back("")
    assert asked._placer.generations.canary is None
    with pytest.raises(InvalidRequest, match="give more than 0 and less than 100"):
        await asked.apply(policy_text(4.0), "ops", 1.5)


async def test_every_change_is_one_line_of_the_log_with_who_and_what(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    ann = Author(name="ann", address="10.0.0.7")
    asked = keeper()
    await asked.start()
    caplog.clear()
    await asked.apply(policy_text(2.0), "ops", author=ann)
    await asked.roll_back("it was a mistake", ann)
    for stretch, verdict in ((3.0, Verdict.ROLL_BACK), (4.0, Verdict.PROMOTE)):
        await asked.apply(policy_text(stretch), "ops", 0.1, ann)
        judged = Judgement(verdict, "it was judged")
        monkeypatch.setattr(PolicyKeeper, "judgement", lambda self, j=judged: (None, j))
        await asked.look()
        monkeypatch.undo()
    lines = [(r.getMessage(), vars(r)["fields"]) for r in caplog.records]
    told = [(f["by"], f["policy_generation"], f["canary_generation"]) for _, f in lines]
    assert told == [
        ("ann", 2, None),
        ("ann", 3, None),
        ("ann", 3, 4),
        ("router", 3, None),
        ("ann", 3, 5),
        ("router", 5, None),
    ]
    assert {(f["audit"], f["policy"]) for _, f in lines} == {("policy", "p")}
    assert "it was a mistake" in lines[1][0]
    assert "The canary 4 was rolled back by itself: it was judged." in lines[3][0]
    assert "The canary 5 took over: it was judged." in lines[5][0]


async def test_what_is_risky_is_told_and_applied() -> None:
    asked = keeper()
    await asked.start()
    await asked.apply(policy_text(more="  classes: [{name: chat}, {name: batch}]\n"), "ops")
    change = await asked.apply(policy_text(90.0, more="  classes: [{name: chat}]\n"), "ops")
    assert change.came is Came.APPLIED
    said = " ".join(change.warnings)
    assert "'spec.queue.stretch' is 90" in said
    assert "has no 'batch' any more" in said


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.slow)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    async with redis_server() as redis:
        store = RedisStore(redis.url)
        yield store
        await store.close()


async def test_routers_of_one_store_agree(store: Store) -> None:
    one, other = (keeper(store=SharedRollouts(store)) for _ in range(2))
    await one.start()
    await one.apply(policy_text(2.0), "ops")
    await other.start()
    assert other.rollout == one.rollout
    await other.apply(policy_text(3.0), "ops", 0.3)
    await one.look()
    assert one.rollout == other.rollout
    assert one._placer.generations.canary is not None
    assert one._placer.generations.canary_settings.traffic_share == 0.3
    await asyncio.gather(
        *(each.apply(policy_text(4.0 + n), "ops") for n, each in enumerate([one, other]))
    )
    await looks(one, 1)
    await looks(other, 1)
    assert one.rollout == other.rollout
    assert one.rollout.active.number == 5
    assert in_force(one) == in_force(other)


async def test_what_others_store_and_nobody_understands_is_told_and_left(path: Path) -> None:
    store = MemoryStore()
    await store.put("policy/rollout", b'{"version": 99}')
    reader = keeper(path, SharedRollouts(store))
    await reader.start()
    assert in_force(reader) == 2.0
    await looks(reader)
    assert await store.get("policy/rollout") == b'{"version": 99}'
    await reader.apply(policy_text(3.0), "ops")  # an operator says so
    assert in_force(reader) == 3.0
    await store.put("policy/rollout", b"nonsense")
    await looks(reader)
    assert (in_force(reader), reader.reloads.num_failures) == (3.0, 1)


async def test_a_store_that_is_away_keeps_nobody_from_starting(path: Path) -> None:
    store = MemoryStore()
    away = Away(store)
    lonely = keeper(path, away)
    await lonely.start()
    await looks(lonely)
    assert in_force(lonely) == 2.0
    assert lonely.is_store_away
    with pytest.raises(StoreUnavailable):
        await lonely.apply(policy_text(3.0), "ops")
    assert in_force(lonely) == 2.0
    path.write_text(policy_text(4.0))
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await looks(lonely)
    with pytest.raises(StoreUnavailable):
        await lonely.reload()
    away.is_away = False
    await looks(lonely)  # and what the file says is still news
    assert not lonely.is_store_away
    assert in_force(lonely) == 4.0
    other = keeper(store=SharedRollouts(store))
    await other.start()
    assert in_force(other) == 4.0


async def test_a_breach_is_rolled_back_though_the_store_is_away() -> None:
    store = MemoryStore()
    away = Away(store)
    away.is_away = False
    lonely = keeper(store=away)
    await lonely.start()
    await lonely.apply(policy_text(2.0), "ops", 0.5)
    canary = lonely._placer.generations.canary
    assert canary is not None
    for side, wait_s in ((canary, 9.0), (lonely._placer.generations.active, 0.1)):
        side.on_trial.num_placed = 300
        for _ in range(300):
            side.on_trial.ttft.add(wait_s)
    away.is_away = True
    await lonely.look()
    assert (lonely.rollout.canary, lonely.is_store_away) == (None, True)
    assert lonely._placer.generations.canary is None
    away.is_away = False
    other = keeper(store=SharedRollouts(store))
    await other.start()
    assert other.rollout.canary is not None  # it does not know yet
    await lonely.look()
    await other.look()
    assert other.rollout == lonely.rollout
    assert "was rolled back by itself: its p95 of TTFT is 9" in other.rollout.why


async def test_what_was_applied_survives_the_router(path: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    first = keeper(path, FileRollouts(state))
    await first.start()
    await first.apply(policy_text(7.0), "ops")
    assert state.stat().st_mode & 0o777 == 0o600
    second = keeper(path, FileRollouts(state))
    await second.start()
    assert (in_force(second), second.rollout) == (7.0, first.rollout)
    path.write_text(policy_text(8.0))  # while no router looks
    third = keeper(path, FileRollouts(state))
    await third.start()
    assert (in_force(third), third.rollout.active.number) == (8.0, 3)
    path.write_text("broken")
    fourth = keeper(path, FileRollouts(state))
    await fourth.start()
    assert (in_force(fourth), fourth.reloads.is_last_good) == (8.0, False)


async def test_a_state_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    lonely = keeper(store=FileRollouts(tmp_path / "nowhere" / "state.json"))
    await lonely.start()
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await lonely.apply(policy_text(2.0), "ops")
    assert in_force(lonely) == 1.0


async def test_a_signal_needs_no_second_look(path: Path) -> None:
    followed = keeper(path)
    await followed.start()
    path.write_text(policy_text(3.0))
    followed.ask_reload()
    await followed.look()
    assert in_force(followed) == 3.0
    path.write_text("broken")
    followed.ask_reload()
    await followed.look()
    assert (in_force(followed), followed.reloads.num_failures) == (3.0, 1)
    await looks(followed, 3)
    assert followed.reloads.num_failures == 1


class Routers:
    """Three of one store and one file, of which anything may happen."""

    def __init__(self, path: Path, draw: random.Random) -> None:
        self.path, self.draw = path, draw
        store = MemoryStore()
        self.stores = [Away(store) for _ in range(3)]
        for each in self.stores:
            each.is_away = False
        self.all = [keeper(path, each) for each in self.stores]

    async def happen(self, index: int) -> None:
        router, stretch = self.all[index], self.draw.choice([1.0, 2.0, 3.0, -1.0])
        match self.draw.choice(["apply", "roll back", "write", "store", "restart", "look"]):
            case "apply":
                await router.apply(policy_text(stretch), "ops", self.draw.choice([None, 0.5]))
            case "roll back":
                await router.roll_back("")
            case "write":
                self.path.write_text(policy_text(stretch))
            case "store":
                self.stores[index].is_away ^= True
            case "restart":
                again = keeper(self.path, self.stores[index])
                await again.start()
                self.all[index] = again
            case _:
                await router.look()

    async def settle(self) -> None:
        for each in self.stores:
            each.is_away = False
        for _ in range(3):
            for router in self.all:
                await router.look()


async def _any_life(path: Path, draw: random.Random) -> None:
    """Once all can speak all agree, and numbers have only risen."""
    path.write_text(policy_text(1.0))
    routers, highest = Routers(path, draw), 0
    for router in routers.all:
        await router.start()
    for _ in range(20):
        index = draw.randrange(3)
        with contextlib.suppress(InvalidRequest, StoreUnavailable, ConfigError):
            await routers.happen(index)
        in_force(routers.all[index])
        if not routers.stores[index].is_away:
            await routers.all[index].look()
            number = routers.all[index].rollout.last_number
            assert number >= highest
            highest = number
    path.write_text(policy_text(5.0))
    await routers.settle()
    assert len({encode_rollout(router.rollout) for router in routers.all}) == 1
    assert {in_force(router) for router in routers.all} == {5.0}


@pytest.mark.slow
@pytest.mark.parametrize("num", [4, pytest.param(300, marks=pytest.mark.prove)])
async def test_whatever_happens_routers_come_to_agree(path: Path, num: int) -> None:
    for seed in range(num):
        await _any_life(path, random.Random(seed))


async def test_a_rollout_of_the_past_is_not_taken_over_and_does_not_stay(store: Store) -> None:
    """A store that was made to say again what it once said, or that has lost its last seconds."""
    one, other = (keeper(store=SharedRollouts(store)) for _ in range(2))
    await one.start()
    await other.start()
    past = [await store.get("policy/rollout")]
    await one.apply(policy_text(2.0), "ops", 0.5)
    past.append(await store.get("policy/rollout"))  # on trial, by a number that stays the last
    await one.roll_back("it is slow")
    await other.look()
    assert other.rollout.canary is None
    for said in past:
        assert said is not None
        await store.put("policy/rollout", said)
        await other.look()
        assert other.rollout == one.rollout
        fresh = keeper(store=SharedRollouts(store))
        await fresh.start()
        assert fresh.rollout == one.rollout  # it was put back
        await store.put("policy/rollout", said)
        await one.apply(policy_text(3.0 + len(said) % 2), "ops")
        await other.look()
        assert other.rollout == one.rollout
        assert one.rollout.canary is None


async def test_a_policy_that_somebody_else_wrote_is_none(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    sealed = SealedStore(store, "token-of-the-tests-cluster")
    one, other = (keeper(store=SharedRollouts(sealed)) for _ in range(2))
    await one.start()
    await other.start()
    ((key, _),) = (await store.scan("policy/rollout")).items()
    forged = replace(one.rollout, active=replace(one.rollout.active, text=policy_text(9.0)))
    for said in (encode_rollout(forged), bytes(32) + encode_rollout(forged), b"", b"\xff" * 50):
        await store.put(key, said)
        await store.put("policy/rollout", said)
        await looks(other)
        await looks(one)
        assert (in_force(one), in_force(other)) == (1.0, 1.0)
        assert await sealed.get("policy/rollout") == encode_rollout(one.rollout)
    assert sum("was not made by this cluster" in text for text in caplog.messages) == 1
