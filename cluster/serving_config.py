"""Holds what the YAML of a router and of a worker says alike."""

from dataclasses import dataclass, field
from pathlib import Path

from cluster.addresses import Endpoint
from cluster.bounds import check_name
from cluster.config import check_range
from cluster.errors import ConfigError
from cluster.log import LogSettings
from cluster.tracing import TraceSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig(LogSettings):
    model: str  # the name that clients use
    """Where clients ask for another name; the same at every process."""
    secrets_file: Path  # of the cluster, mode 0600
    """Where the secrets lie elsewhere; a copy of one file at every process."""
    address: str = "127.0.0.1:0"  # HOST:PORT where it listens; port 0: any
    """Give a port that others know; another host where others than this machine come in."""
    insecure: bool = False  # true: what passes beyond loopback may be read, and nobody is asked
    """Only in a network that is trusted: it opens this process to whoever reaches it."""
    cluster: str | None = None  # its name: keeps apart what clusters of one Redis leave there
    """Where several clusters share a Redis; the same at every process of one."""
    hash_grain: int = 16  # tokens of which prefixes are made; the same in the whole cluster
    """Raise it for long prompts that share much: fewer hashes, coarser reuse."""
    verify_weights: bool = False  # what compares models reads all weights, not only their sizes
    """Where copies of a checkpoint may differ unseen; the same at every process, a slower start."""
    # HOST:PORT where Prometheus scrapes it; port 0: any; null: nowhere. Whoever reaches it reads
    # names, counts and times, and nothing that was asked or answered
    metrics: str | None = "127.0.0.1:0"
    """Give a port that Prometheus knows, and a host where it runs on another machine."""
    tracing: TraceSettings = field(default_factory=TraceSettings)  # of single requests
    """To see where the time of a request goes, process by process; the same at every process."""
    drain_s: float = 60.0  # left to requests in flight when the process is told to end
    """Raise it to the length of the longest answer; lower it where a machine goes sooner."""

    def __post_init__(self) -> None:
        if self.cluster is not None:
            check_name(self.cluster, "cluster")
        if self.metrics is not None:
            _check_endpoint("metrics", self.metrics)
        check_range(self, "hash_grain", at_least=1)
        check_range(self, "drain_s", at_least=0)


def _check_endpoint(key: str, text: str) -> None:
    try:
        Endpoint.parse(text)
    except ConfigError as error:
        raise ConfigError(f"'{key}': {error}") from error
