"""Gathers what one process knows of itself and its machine: what an operator's tool asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.checkpoint_review import CheckpointReview


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    path: str
    file_system: str  # its type
    num_bytes: int
    free_bytes: int
    mode: int  # permission bits


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAnswer:
    address: str  # host:port
    seconds: float
    problem: str = ""  # empty: it answered


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    unix_s: float  # its clock as it answers
    machine: str  # the same for all processes of one running machine
    versions: Mapping[str, str]  # by distribution; what is absent is left out
    wire_version: int
    memlock_bytes: int | None  # its limit; None: unlimited
    max_open_files: int | None
    num_open_files: int
    num_cpus: int  # that it may run on
    num_threads: int  # that its engine computes with
    run_dir: Folder | None  # where its KV pool lies
    listening: tuple[str, ...]  # host:port
    secrets_mode: int | None
    store: StoreAnswer | None  # None: it uses none over the network
    checks_content: bool  # of KV that it receives, by digest
    tls_ports: frozenset[int] = frozenset()  # of what listens: it speaks TLS alone
    required_transport: str | None = None  # it receives KV by this one or not at all
    memory_bytes_per_s: float = 0.0  # 0: not measured
    review: CheckpointReview | None = None  # of the checkpoint; None: it has not read one
    # What was measured on its machine, and what is used for it, in words.
    choices: Mapping[str, str] = field(default_factory=dict)
