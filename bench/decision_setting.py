"""A router's placer amid a deployment: workers that hold sessions and have work, requests of
those sessions to place. No process, no socket."""

import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from cluster.types import (
    DecodeCost,
    Fingerprint,
    GrainHash,
    Incarnation,
    KvLayout,
    LoadReport,
    Member,
    PrefillCost,
    Role,
    WorkerAddress,
    WorkerId,
)
from router.flight import Ask
from router.index import PrefixIndex
from router.placer import Placer
from router.policy import Policy
from router.pool import Pool
from router.records import Records
from router.rollout.generations import Generations

LIFE = Incarnation("life")
NUM_SESSIONS = 100
SYSTEM_SHARE = 1 / 16  # of a prompt: what all sessions begin with
IN_FLIGHT = 2  # requests a worker


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionSetting:
    num_tokens: int  # of a prompt
    grain: int  # tokens
    num_prefill: int
    num_decode: int

    @property
    def num_grains(self) -> int:
        return self.num_tokens // self.grain


@dataclass(slots=True, eq=False)
class Deployment:
    """The workers report by turns, so that a decision finds some of them changed."""

    setting: DecisionSetting
    placer: Placer = field(init=False)
    drawn: random.Random = field(default_factory=lambda: random.Random(11))
    _members: list[Member] = field(default_factory=list)
    _sessions: list[list[GrainHash]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    now: float = 0.0

    def __post_init__(self) -> None:
        setting = self.setting
        self.placer = Placer(
            Pool(),
            PrefixIndex(1 << 30),
            setting.grain,
            Generations(Policy()),
            Records(16 << 20),
        )
        roles = [Role.PREFILL] * setting.num_prefill + [Role.DECODE] * setting.num_decode
        self._members = [_member(number, role) for number, role in enumerate(roles)]
        for member in self._members:
            self.placer.pool.join(member)
            self.report(member)
        self._fill()
        for _ in range(IN_FLIGHT * len(self._members)):
            self.placer.place(self.ask(), self.now)

    def ask(self) -> Ask:
        """The next turn of a session. Its hashes are new objects, as those of a request are."""
        prompt = self.drawn.choice(self._sessions)
        depth = self.drawn.randrange(len(prompt) // 2, len(prompt))
        fresh = [GrainHash(bytes(bytearray(grain))) for grain in prompt[:depth]]
        rest = [GrainHash(secrets.token_bytes(16)) for _ in prompt[depth:]]
        return Ask(
            request_id=f"request-{next(self._numbers)}",
            hashes=(*fresh, *rest),
            num_prompt_tokens=self.setting.num_tokens,
            max_tokens=128,
            arrived_at=self.now,
        )

    def step(self) -> None:
        """Some time, in which each worker reports at its turn: four times a second."""
        self.now += 0.25 / len(self._members)
        self.report(self._members[next(self._numbers) % len(self._members)])

    def report(self, member: Member) -> None:
        drawn = self.drawn
        num_waiting = drawn.randrange(3)
        report = LoadReport(
            num_running=drawn.randrange(1, 8),
            num_waiting=num_waiting,
            num_queued_tokens=num_waiting * self.setting.num_tokens,
            num_context_tokens=drawn.randrange(50_000),
            num_free_blocks=drawn.randrange(50_000, 100_000),
            num_blocks=100_000,
            prefill_cost=PrefillCost(c0=0.001, c1=2e-6, c3=1e-11),
            decode_cost=DecodeCost(d0=0.01, d1=1e-8, d2=1e-4),
            backlog=tuple((0.1 * (n + 1), 0.02 * (n + 1)) for n in range(num_waiting)),
        )
        worker = member.worker
        self.placer.pool.report(worker.worker_id, worker.incarnation, report, self.now)

    def _fill(self) -> None:
        """Each session is held by one to three workers, in part or whole; its start by many."""
        num_grains, drawn = self.setting.num_grains, self.drawn
        system = _grains(int(SYSTEM_SHARE * num_grains))
        self._sessions = [
            [*system, *_grains(num_grains - len(system))] for _ in range(NUM_SESSIONS)
        ]
        index, workers = self.placer.index, [member.worker.worker_id for member in self._members]
        held = {worker: system[: drawn.randrange(len(system) + 1)] for worker in workers}
        for session in self._sessions:
            for worker in drawn.sample(workers, drawn.randrange(1, 4)):
                held[worker] = [*held[worker], *session[: drawn.randrange(num_grains)]]
        for worker in workers:
            index.replace(worker, LIFE, held[worker])


def _grains(num: int) -> list[GrainHash]:
    return [GrainHash(secrets.token_bytes(16)) for _ in range(num)]


def _member(number: int, role: Role) -> Member:
    layout = KvLayout(num_layers=32, num_blocks=100_000, block_size=16, num_kv_heads=8, head_dim=64)
    fingerprint = Fingerprint(
        model_digest="m", tokenizer_digest="t", template_digest="t", hash_grain=16, layout=layout
    )
    worker = WorkerAddress(
        worker_id=WorkerId(f"{role}-{number}"),
        incarnation=LIFE,
        address="127.0.0.1:1",
        transports={},
        fingerprint=fingerprint,
    )
    return Member(worker=worker, role=role, model="m", context_length=1 << 17, max_sequences=256)
