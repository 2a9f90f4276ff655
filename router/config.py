"""The configuration of one router process."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.addresses import Endpoint
from cluster.authority import Credentials
from cluster.bounds import check_name
from cluster.config import check_range
from cluster.errors import ConfigError
from cluster.limits import Limits
from cluster.log import FILE_BYTES, LogFormat, LogLevel
from router.policy import Disaggregate
from router.policy_file.document import PlacementSpec, PolicyDocument, PolicySpec, default_document
from router.standing import Assumed

IN_MEMORY = "memory"
_COUNTS = ("hash_grain", "max_in_flight", "num_text_threads", "index_budget_bytes")
_NOT_NEGATIVE = (
    "drain_s",
    "gather_s",
    "return_s",
    "max_waiting_bytes",
    "max_waiting_texts",
    "records_budget_bytes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    checkpoint: Path  # of the served model: tokenizer, template and configuration are read
    model: str  # the name that clients use
    secrets_file: Path  # of the cluster, mode 0600
    address: str = "127.0.0.1:0"  # where it listens, for clients and workers; port 0: any
    # HOST:PORT where workers, operators and `penstock` of other machines reach it, under TLS; null:
    # at 'address' alone
    internal: str | None = None
    insecure: bool = False  # true: others than this machine may reach it, though it asks nobody
    cluster: str | None = None  # its name: keeps apart what clusters of one Redis leave there
    store: str = IN_MEMORY  # or the URL of a Redis, when there are several routers or machines
    hash_grain: int = 16  # tokens of which prefixes are made; the same in the whole cluster
    context_length: int | None = None  # narrows the checkpoint's own
    verify_weights: bool = False  # what compares models reads all weights; as the workers'
    limits: Limits = field(default_factory=Limits)  # of one request
    disaggregate: Disaggregate = Disaggregate.AUTO  # while no policy says it
    policy_file: Path | None = None  # followed; null: the defaults, until a policy is applied
    policy_state: Path | None = None  # keeps what is in force, where the store is in memory
    assumed: Assumed = field(default_factory=Assumed)  # of what has not been measured yet
    max_in_flight: int = 1024  # requests; more are refused
    unread_s: float = 60.0  # a stream of which the client reads nothing for so long is ended
    max_waiting_texts: int = 2048  # to be tokenised: all in flight may, and as many others
    num_text_threads: int = 2  # that tokenise
    index_budget_bytes: int = 128 << 20  # of the prefix index: half a million grains and more
    gather_s: float = 0.5  # so long workers may take to come back to a router that starts anew
    # of what was decided lately, for who asks why; 0: nothing, and no shadow decides
    records_budget_bytes: int = 8 << 20
    return_s: float = 30.0  # so long who left without a word is expected back, and waited for
    max_waiting_bytes: int = 256 << 20  # of requests that wait for a worker; more are refused
    drain_s: float = 60.0  # left to requests in flight when the process is told to end
    log_level: LogLevel | None = None  # request: a line each; null: PENSTOCK_LOG's, else info
    log_format: LogFormat = "text"  # json: an object a line
    log_file: Path | None = None  # rotated: so many bytes, and three older ones; null: stderr
    log_file_bytes: int = FILE_BYTES  # of one file of the log

    def __post_init__(self) -> None:
        if self.cluster is not None:
            check_name(self.cluster, "cluster")
        check_range(self, *_COUNTS, at_least=1)
        check_range(self, *_NOT_NEGATIVE, at_least=0)
        check_range(self, "unread_s", above=0)
        if Endpoint.parse(self.address).is_open_to_others and not self.insecure:
            raise ConfigError(
                f"'address' is '{self.address}', where others than this machine may come in, and"
                " callers are not authenticated yet: give a loopback address, or say 'insecure:"
                " true' to let in whoever reaches it."
            )
        if self.internal is not None:
            self._check_internal(self.internal)
        if self.store != IN_MEMORY and "://" not in self.store:
            raise ConfigError(
                f"'store' is '{self.store}': give '{IN_MEMORY}' or a URL, redis://HOST:PORT/DB."
            )
        if self.policy_file is not None and self.disaggregate is not Disaggregate.AUTO:
            raise ConfigError(
                "'disaggregate' and 'policy_file' are both given: say it in the policy, as"
                " 'spec.placement.disaggregate'."
            )

    def _check_internal(self, text: str) -> None:
        try:
            internal, front = Endpoint.parse(text), Endpoint.parse(self.address)
        except ConfigError as error:
            raise ConfigError(f"'internal': {error}") from error
        if internal.port and internal == front:
            raise ConfigError(
                f"'internal' is '{text}', where clients come in ('address'): give another port."
            )

    def check_ways(self, credentials: Credentials) -> None:
        """Raises ConfigError where calls of workers could be read on their way."""
        listens = self.internal
        if listens is None or self.insecure or credentials.at(listens):
            return
        if Endpoint.parse(listens).is_open_to_others:
            raise ConfigError(
                f"'internal' is '{listens}', where others than this machine may listen in, and the"
                " secrets file holds no authority for TLS: draw one that does with 'penstock"
                " secrets', for all processes, or say 'insecure: true' where that network is"
                " trusted."
            )

    @property
    def document(self) -> PolicyDocument:
        """What holds where no policy was given."""
        placement = PlacementSpec(disaggregate=self.disaggregate)
        return replace(default_document(), spec=PolicySpec(placement=placement))
