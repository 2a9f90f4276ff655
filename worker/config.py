"""What the YAML of a worker of either role may say; each role adds its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cluster.addresses import Endpoint, advertised
from cluster.authority import Credentials
from cluster.bounds import check_name
from cluster.config import check_range
from cluster.errors import ConfigError
from cluster.log import FILE_BYTES, LogFormat, LogLevel
from kv_transfer.doors import WITHOUT_TLS, check_transports

_COUNTS = (
    "num_threads",
    "num_blocks",
    "block_size",
    "hash_grain",
    "max_sequences",
    "max_batch_tokens",
    "tcp_streams",
)
MAX_PORT = 65535
MAX_THREADS: Final = 1024  # of a worker's engine: OpenMP dies of many more


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    checkpoint: str  # directory of the served model, the same model at every process
    model: str  # the name that clients use
    worker_id: str  # a name of its own in the cluster, kept through restarts
    router: str  # where to register: the router's HOST:PORT, or redis://HOST:PORT/DB
    secrets_file: str  # of the cluster, mode 0600
    run_dir: str  # where the KV pool's file lies, on a file system in memory; made if missing
    address: str = "127.0.0.1:0"  # where it listens; port 0: any
    # host by which routers and other workers reach it; null: as 'address' says, or of 0.0.0.0 the
    # address of this machine towards others
    advertise: str | None = None
    insecure: bool = False  # true: what passes beyond loopback may be read there
    cluster: str | None = None  # its name: keeps apart what clusters of one Redis leave there
    engine: Literal["torch", "echo"] = "torch"  # echo computes nothing: for tests of a cluster
    device: str = "cpu"  # as torch names it
    num_threads: int = 1  # of the processor, that compute
    num_blocks: int = 1024  # of the KV pool, which is taken in full at the start
    block_size: int = 16  # tokens; this or hash_grain divides the other
    kv_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the KV pool
    hash_grain: int = 16  # tokens of which prefixes are made; the same in the whole cluster
    verify_weights: bool = False  # what compares models reads all weights; as the router's
    max_sequences: int = 64  # run together in one step
    max_waiting: int = 1024  # requests that wait for a turn; more are refused
    max_batch_tokens: int = 512  # of prompts, in one step
    chunk_s: float = 0.25  # predicted seconds of prompt work in one step
    transports: tuple[str, ...] = ("shared_memory", "tcp")  # that KV may travel by
    require_transport: str | None = None  # this one of them or none
    tcp_port: int = 0  # of the transport 'tcp'; 0: any that is free
    tcp_streams: int = 4  # to each peer; only large writes use more than one
    # of KV that came: 'content' compares all bytes, 'count' how many there are.
    digest: Literal["content", "count"] = "content"
    lease_s: float = 3.0  # so long a writer of KV may give no sign of life
    probe_tokens: int = 16  # moved over each new pair before it is needed; 0: none
    fetch_s: float = 2.0  # a prefix that is not here by then is computed
    drain_s: float = 60.0  # left to requests in flight when the process is told to end
    log_level: LogLevel | None = None  # request: a line each; null: PENSTOCK_LOG's, else info
    log_format: LogFormat = "text"  # json: an object a line
    log_file: Path | None = None  # rotated: so many bytes, and three older ones; null: stderr
    log_file_bytes: int = FILE_BYTES  # of one file of the log

    def __post_init__(self) -> None:
        if self.cluster is not None:
            check_name(self.cluster, "cluster")
        check_range(self, *_COUNTS, at_least=1)
        check_range(self, "max_waiting", "tcp_port", "probe_tokens", "drain_s", at_least=0)
        check_range(self, "chunk_s", "lease_s", "fetch_s", above=0)
        check_range(self, "tcp_port", at_most=MAX_PORT)
        check_range(self, "num_threads", at_most=MAX_THREADS)
        if self.block_size % self.hash_grain and self.hash_grain % self.block_size:
            raise ConfigError(
                f"'block_size' is {self.block_size} and 'hash_grain' {self.hash_grain}: one must"
                " divide the other."
            )
        check_transports(self.transports)
        if not (listens := _endpoint(self.address)) or not listens.host:
            raise ConfigError(
                f"'address' is '{self.address}': give the HOST:PORT where it listens; port 0 is any"
                " that is free."
            )
        _ = self.dialled  # raises where nobody could
        router = _endpoint(self.router)
        if "://" not in self.router and (router is None or router.is_any):
            raise ConfigError(
                f"'router' is '{self.router}': give the router's HOST:PORT, or the URL of the Redis"
                " that the routers share, redis://HOST:PORT/DB."
            )

    def check_ways(self, credentials: Credentials) -> None:
        """Raises ConfigError where what passes could be read on its way, without a word of it."""
        if self.insecure or not Endpoint.parse(self.address).is_open_to_others:
            return
        where = f"'address' is '{self.address}', where others than this machine may listen in, and"
        remedy = "or say 'insecure: true' where that network is trusted."
        if not credentials.at(self.address):
            raise ConfigError(
                f"{where} the secrets file holds no authority for TLS: draw one that does with"
                f" 'penstock secrets', for all processes, {remedy}"
            )
        if bare := [name for name in self.transports if name in WITHOUT_TLS]:
            raise ConfigError(
                f"{where} KV by {' and '.join(bare)} has no TLS: take it out of 'transports',"
                f" {remedy}"
            )

    @property
    def dialled(self) -> Endpoint:
        """Where the other processes reach it; the port may still be 0."""
        return advertised(Endpoint.parse(self.address), self.advertise)


def _endpoint(text: str) -> Endpoint | None:
    try:
        return Endpoint.parse(text)
    except ConfigError:
        return None  # whose sentence names no key
