"""Says what the YAML of a worker of either role may hold; each role adds its own."""

from dataclasses import dataclass
from typing import Final, Literal

from cluster.addresses import Endpoint, advertised
from cluster.authority import Credentials
from cluster.config import check_range
from cluster.errors import ConfigError
from cluster.serving_config import ServingConfig
from kv_transfer.doors import WITHOUT_TLS, check_transports

_COUNTS = (
    "num_threads",
    "num_blocks",
    "block_size",
    "max_sequences",
    "max_batch_tokens",
    "tcp_streams",
)
MAX_PORT = 65535
MAX_THREADS: Final = 1024  # of a worker's engine: OpenMP dies of many more


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(ServingConfig):
    checkpoint: str  # directory of the served model, the same model at every process
    """Where the model lies elsewhere, or another one is served."""
    worker_id: str  # a name of its own in the cluster, kept through restarts
    """For each worker: what `penstock status` is to call it."""
    router: str  # where to register: the router's HOST:PORT, or redis://HOST:PORT/DB
    """The Redis where several routers share one."""
    run_dir: str  # where the KV pool's file lies, on a file system in memory; made if missing
    """Where `/dev/shm` is too small; workers of one machine share it, to move KV through memory."""
    # host by which routers and other workers reach it; null: as 'address' says, or of 0.0.0.0 the
    # address of this machine towards others
    advertise: str | None = None
    """On a machine with several networks, where the wrong one is found."""
    engine: Literal["torch", "echo"] = "torch"  # echo computes nothing: for tests of a cluster
    """Never to serve."""
    device: str = "cpu"  # as torch names it
    """cuda, or cuda:NUMBER, where there is a GPU."""
    num_threads: int = 1  # threads of the processor, that compute
    """On a CPU: its cores, divided by the workers of the machine."""
    num_blocks: int = 1024  # blocks of the KV pool, which is taken in full at the start
    """Raise it as far as memory goes: more answers at once, more prefixes kept."""
    block_size: int = 16  # tokens; this or hash_grain divides the other
    """Raise it for long prompts: longer copies; lower it where the ends of short ones are waste."""
    kv_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the KV pool
    """Half the memory where answers may differ in the last digits."""
    # auto: native on a CPU, triton on CUDA, where they can be compiled
    attention: Literal["auto", "native", "triton", "torch"] = "auto"
    """native or triton to refuse to start without that kernel; torch to compare."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"  # as matrices are kept, on a CPU
    """Where tokens come too slowly and nearly the same answers will do; the same at all workers."""
    max_sequences: int = 64  # sequences that run together in one step
    """Raise it for more answers at once; lower it where tokens come too slowly."""
    max_waiting: int = 1024  # requests that wait for a turn; more are refused
    """Lower it to refuse sooner; raise it where bursts are long and deadlines longer."""
    max_batch_tokens: int = 512  # of prompts, in one step
    """Raise it on a GPU, which larger steps fill; `chunk_s` bounds a step, too."""
    chunk_s: float = 0.25  # predicted, of prompt work in one step
    """Lower it where long prompts hold up others; raise it where steps are too short to be fast."""
    transports: tuple[str, ...] = ("shared_memory", "tcp")  # that KV may travel by
    """To add nixl where there is RDMA or NVLink; to leave out one that fails."""
    require_transport: str | None = None  # this one of them or none
    """Where a slower transport is worse than computing again."""
    tcp_port: int = 0  # port of the transport 'tcp'; 0: any that is free
    """Where a firewall wants to know it."""
    tcp_streams: int = 4  # connections to each peer; only large writes use more than one
    """Raise it where one connection does not fill the network."""
    # of KV that came: 'content' compares all bytes, 'count' how many there are.
    digest: Literal["content", "count"] = "content"
    """count where the digest is what holds KV up, and the network is trusted."""
    lease_s: float = 3.0  # so long a writer of KV may give no sign of life
    """Raise it where machines stall for longer; lower it to go on elsewhere sooner."""
    probe_tokens: int = 16  # moved over each new pair before it is needed; 0: none
    """0 where pairs are too many to be tried at each start."""
    fetch_s: float = 2.0  # a prefix that is not here by then is computed
    """Raise it where prefixes are long and computing them takes longer still."""

    def __post_init__(self) -> None:
        ServingConfig.__post_init__(self)  # by name: a class with slots is not the one written here
        check_range(self, *_COUNTS, at_least=1)
        check_range(self, "max_waiting", "tcp_port", "probe_tokens", at_least=0)
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
        """Says where the other processes reach it; the port may still be 0."""
        return advertised(Endpoint.parse(self.address), self.advertise)


def _endpoint(text: str) -> Endpoint | None:
    try:
        return Endpoint.parse(text)
    except ConfigError:
        return None  # whose sentence names no key
