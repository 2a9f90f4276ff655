"""What the YAML of a worker of either role may say; each role adds its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cluster.log import FILE_BYTES, LogFormat, LogLevel
from kv_transfer.tcp_tls import TlsFiles

MAX_THREADS: Final = 1024  # of a worker's engine: OpenMP dies of many more


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    checkpoint: str
    model: str
    worker_id: str
    router: str  # where to register: its host:port, or redis://HOST:PORT/DB
    secrets_file: str
    run_dir: str  # where the KV pool's file lies, on a file system in memory
    address: str = "127.0.0.1:0"
    engine: Literal["torch", "echo"] = "torch"
    device: str = "cpu"
    num_threads: int = 1
    num_blocks: int = 1024
    block_size: int = 16
    kv_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the KV pool
    hash_grain: int = 16
    max_sequences: int = 64
    max_waiting: int = 1024
    max_batch_tokens: int = 512
    chunk_s: float = 0.25  # predicted seconds of prompt work in one step
    transports: tuple[str, ...] = ("shared_memory", "tcp")
    require_transport: str | None = None  # this one or none
    tcp_port: int = 0  # of the transport 'tcp'; 0: any that is free
    tcp_streams: int = 4  # to each peer; only large writes use more than one
    tcp_tls: TlsFiles | None = None  # both ends or neither
    digest: Literal["content", "count"] = "content"
    lease_s: float = 3.0
    probe_tokens: int = 16  # moved over each new pair before it is needed; 0: none
    fetch_s: float = 2.0  # a prefix that is not here by then is computed
    drain_s: float = 60.0
    log_level: LogLevel | None = None  # none: that of PENSTOCK_LOG, else info
    log_format: LogFormat = "text"
    log_file: Path | None = None  # rotated: so many bytes, and three older ones; none: stderr
    log_file_bytes: int = FILE_BYTES

    def __post_init__(self) -> None:
        if not 1 <= self.num_threads <= MAX_THREADS:
            raise ValueError(f"'num_threads' is {self.num_threads}: give 1 to {MAX_THREADS}.")
        if min(self.num_blocks, self.block_size, self.hash_grain) < 1:
            raise ValueError("'num_blocks', 'block_size' and 'hash_grain' are 1 or more.")
        if self.block_size % self.hash_grain and self.hash_grain % self.block_size:
            raise ValueError(
                f"'block_size' is {self.block_size} and 'hash_grain' {self.hash_grain}: give sizes"
                " of which one divides the other."
            )
