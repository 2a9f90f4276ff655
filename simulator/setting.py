"""Says what is simulated: how many workers of which make, what joins them, what is aimed at."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import inf

from cluster.bounds import check_above, check_between, check_choice
from cluster.errors import ConfigError
from cluster.types import (
    DTYPE_BYTES,
    MAX_LINKS,
    DecodeCost,
    Fingerprint,
    Incarnation,
    KvLayout,
    LinkCost,
    Member,
    PrefillCost,
    Role,
    WorkerAddress,
    WorkerId,
)

# A 70-billion model on four GPUs, as in Preble's published fits; decoding as its memory
# bandwidth allows: 35 GB of weights and 80 KiB of a token's KV on each GPU, at 2 TB/s.
PREFILL_COST = PrefillCost(c0=18.67e-3, c1=0.07988e-3, c2=2.69e-6, c3=7.44e-10)
DECODE_COST = DecodeCost(d0=18e-3, d1=4e-8, d2=5e-5)


_DURATIONS: tuple[str, ...] = ("message_s", "client_s", "door_s", "step_gap_s", "event_s")
_DURATIONS += ("report_s", "grant_s", "fetch_s", "lease_s", "lapse_s")
_MOST = 1e18  # of anything
_MOST_BLOCKS = 10_000_000  # of one worker: each is an object here


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMake:
    """One worker of a role: its speed, its memory and its limits."""

    prefill_cost: PrefillCost = PREFILL_COST
    decode_cost: DecodeCost = DECODE_COST
    cache_tokens: int = 400_000  # its KV pool
    block_size: int = 64
    max_sequences: int = 128
    max_batch_tokens: int = 8192
    chunk_s: float = 0.5  # predicted seconds of prompt work in one step
    max_waiting: int = 1024
    watermark: float = 0.05  # prefill: share of the pool kept free
    num_gpus: int = 4

    @property
    def num_blocks(self) -> int:
        return self.cache_tokens // self.block_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKv:
    """Says what one token's KV is."""

    num_layers: int = 80
    num_kv_heads: int = 8
    head_dim: int = 128
    dtype: str = "bfloat16"

    def layout(self, make: WorkerMake) -> KvLayout:
        return KvLayout(
            num_layers=self.num_layers,
            num_blocks=make.num_blocks,
            block_size=make.block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
        )

    @property
    def token_bytes(self) -> int:
        return 2 * self.num_layers * self.layout(WorkerMake()).slot_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLink:
    """Holds what every pair of workers has for itself: pairs do not slow each other down."""

    setup_s: float = 0.002
    bytes_per_s: float = 20e9

    def visible_s(self, num_bytes: int, num_layers: int, overlap_s: float) -> float:
        """Gives the time from the end of the prefill until the last layer has landed, where the
        layers before it could travel for `overlap_s` while the prompt was computed."""
        layer_s = num_bytes / num_layers / self.bytes_per_s
        earlier_s = self.setup_s + layer_s * (num_layers - 1)
        return max(0.0, earlier_s - overlap_s) + layer_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Says what a request must meet to count as good."""

    ttft_s: float = 2.0
    itl_s: float = 0.1  # mean of the request


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    num_prefill: int
    num_decode: int
    prefill: WorkerMake = field(default_factory=WorkerMake)
    decode: WorkerMake = field(default_factory=WorkerMake)
    model: TokenKv = field(default_factory=TokenKv)
    link: PairLink = field(default_factory=PairLink)
    targets: Targets = field(default_factory=Targets)
    noise: float = 0.0  # share by which a step's seconds vary, evenly
    message_s: float = 0.0005  # between any two processes
    client_s: float = 0.0  # between a client and the router, both ways together
    door_s: float = 0.0  # the router's own work on a request, one after another
    step_gap_s: float = 0.0  # between two steps of a worker: taking in, forming the next
    event_s: float = 0.001  # from a worker's cache to the router's index
    report_s: float = 0.25  # between two load reports
    grant_s: float = 300.0  # a hand-over without blocks by then is computed by its decode worker
    fetch_s: float = 2.0  # a prefix that is not there by then is computed
    lease_s: float = 3.0  # a hand-over without a sign of life for so long, too
    lapse_s: float = 5.0  # a worker that says nothing for so long is given up by the router
    index_bytes: int = 1 << 30
    gpu_hour_price: float = 2.0

    def __post_init__(self) -> None:
        if self.num_prefill < 0 or self.num_decode < 1:
            raise ConfigError("Give one decode worker at least, and no fewer than 0 for prefill.")
        for make in (self.prefill, self.decode):
            if make.block_size < 1 or make.num_blocks < 1 or make.max_sequences < 1:
                raise ConfigError(
                    "A worker has room for one sequence and one block of one token at least."
                )
        for name in _DURATIONS:
            seconds = getattr(self, name)
            if not (0.0 <= seconds < inf) or (name == "report_s" and not seconds):
                raise ConfigError(f"{name} is a number of seconds, not {seconds}.")
        if not 0.0 <= self.noise < 1.0:
            raise ConfigError(f"noise is a share from 0 to below 1, not {self.noise}.")
        try:
            self._check_numbers()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_numbers(self) -> None:
        """Refuses what would be divided by nothing, or take less than no time."""
        for role, make in (("prefill", self.prefill), ("decode", self.decode)):
            what = f"{role}.cache_tokens / block_size"
            check_between(what, make.num_blocks, "blocks", least=1, most=_MOST_BLOCKS)
            for cost in ("prefill_cost", "decode_cost"):
                for name, value in asdict(getattr(make, cost)).items():
                    check_between(f"{role}.{cost}.{name}", value, least=0.0, most=_MOST)
        for name in ("num_layers", "num_kv_heads", "head_dim"):
            check_between(f"model.{name}", getattr(self.model, name), least=1, most=_MOST)
        check_choice(self.model.dtype, "dtype of a model", DTYPE_BYTES)
        check_between("link.setup_s", self.link.setup_s, "s", least=0.0, most=_MOST)
        check_above("link.bytes_per_s", self.link.bytes_per_s, least=0.0, most=_MOST)
        check_between("gpu_hour_price", self.gpu_hour_price, least=0.0, most=_MOST)

    @property
    def num_workers(self) -> int:
        return self.num_prefill + self.num_decode

    @property
    def num_gpus(self) -> int:
        return self.num_prefill * self.prefill.num_gpus + self.num_decode * self.decode.num_gpus

    def gpu_s(self, end_s: float) -> float:
        """Sums the seconds of all GPUs, if the workers stay until then."""
        return self.num_gpus * end_s

    def links(self, workers: Iterable[WorkerId]) -> tuple[LinkCost, ...]:
        """Gives the links from each of them to anybody."""
        link = self.link
        return tuple(
            LinkCost(peer=worker, setup_s=link.setup_s, s_per_byte=1.0 / link.bytes_per_s)
            for worker in islice(workers, MAX_LINKS)
        )

    @property
    def workers(self) -> Iterator[tuple[Role, WorkerId]]:
        """All of them, as they are called."""
        for role, num in ((Role.PREFILL, self.num_prefill), (Role.DECODE, self.num_decode)):
            for number in range(num):
                yield role, WorkerId(f"{role}-{number}")

    def check_grain(self, grain: int) -> None:
        """Raises ConfigError unless blocks and the grains of a trace nest."""
        for make in (self.prefill, self.decode):
            if grain % make.block_size and make.block_size % grain:
                raise ConfigError(
                    f"A block of {make.block_size} tokens and the trace's grain of {grain} do "
                    f"not nest: choose a block_size that divides the grain."
                )

    def make(self, role: Role) -> WorkerMake:
        return self.prefill if role is Role.PREFILL else self.decode

    def member(self, role: Role, worker: WorkerId, life: int, grain: int) -> Member:
        """A worker as it would register itself."""
        make = self.make(role)
        fingerprint = Fingerprint(
            model_digest="modelled",
            tokenizer_digest="",
            template_digest="",
            hash_grain=grain,
            layout=self.model.layout(make),
        )
        address = WorkerAddress(
            worker_id=worker,
            incarnation=Incarnation(f"{worker}#{life}"),
            address="",
            transports={},
            fingerprint=fingerprint,
        )
        return Member(
            worker=address,
            role=role,
            model="modelled",
            context_length=make.cache_tokens,
            max_sequences=make.max_sequences,
        )
