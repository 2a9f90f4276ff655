"""The configuration of one router process."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.addresses import Endpoint
from cluster.errors import ConfigError
from cluster.limits import Limits
from cluster.log import FILE_BYTES, LogFormat, LogLevel
from router.policy import Disaggregate
from router.policy_file.document import PlacementSpec, PolicyDocument, PolicySpec, default_document
from router.standing import Assumed

IN_MEMORY = "memory"
_NOT_NEGATIVE = (
    "drain_s",
    "gather_s",
    "return_s",
    "unread_s",
    "max_waiting_bytes",
    "max_waiting_texts",
    "records_budget_bytes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    checkpoint: Path  # of the served model: tokenizer, template and configuration are read
    model: str  # the name that clients use
    secrets_file: Path
    address: str = "127.0.0.1:0"  # port 0: any
    insecure: bool = False  # true: others than this machine may reach it, though it asks nobody
    store: str = IN_MEMORY  # or the URL of a Redis, when there are several routers or machines
    hash_grain: int = 16  # tokens; the same in the whole cluster
    context_length: int | None = None  # narrows the checkpoint's own
    verify_weights: bool = False  # digests compare all bytes of the weights
    limits: Limits = field(default_factory=Limits)
    disaggregate: Disaggregate = Disaggregate.AUTO  # while no policy says it
    policy_file: Path | None = None  # followed; none: the defaults, until a policy is applied
    policy_state: Path | None = None  # keeps what is in force, where the store is in memory
    assumed: Assumed = field(default_factory=Assumed)  # where nothing has been measured
    max_in_flight: int = 1024
    unread_s: float = 60.0  # a stream of which the client reads nothing for so long is ended
    max_waiting_texts: int = 2048  # to be tokenised: all in flight may, and as many others
    num_text_threads: int = 2
    index_budget_bytes: int = 128 << 20  # of half a million grains none is ever forgotten
    gather_s: float = 0.5  # so long workers may take to come back to a router that starts anew
    # Of what was decided lately, for who asks why; 0: nothing, and no shadow decides.
    records_budget_bytes: int = 8 << 20
    return_s: float = 30.0  # so long who left without a word is expected back, and waited for
    max_waiting_bytes: int = 256 << 20  # of requests that wait for a worker; more are refused
    drain_s: float = 60.0
    log_level: LogLevel | None = None  # none: that of PENSTOCK_LOG, else info
    log_format: LogFormat = "text"
    log_file: Path | None = None  # rotated: so many bytes, and three older ones; none: stderr
    log_file_bytes: int = FILE_BYTES

    def __post_init__(self) -> None:
        for name in ("hash_grain", "max_in_flight", "num_text_threads", "index_budget_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}: it must be at least 1.")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"'{name}' is {getattr(self, name)}: it cannot be negative.")
        if self.unread_s <= 0:
            raise ConfigError(f"'unread_s' is {self.unread_s}: it must be above 0.")
        if Endpoint.parse(self.address).is_open_to_others and not self.insecure:
            raise ConfigError(
                f"'address' is '{self.address}', where others than this machine may come in, and"
                " callers are not authenticated yet: give a loopback address, or say 'insecure:"
                " true' to let in whoever reaches it."
            )
        if self.store != IN_MEMORY and "://" not in self.store:
            raise ConfigError(
                f"'store' is '{self.store}': give '{IN_MEMORY}' or a URL, redis://HOST:PORT/DB."
            )

        if self.policy_file is not None and self.disaggregate is not Disaggregate.AUTO:
            raise ConfigError(
                "'disaggregate' and 'policy_file' are both given: say it in the policy, as"
                " 'spec.placement.disaggregate'."
            )

    @property
    def document(self) -> PolicyDocument:
        """What holds where no policy was given."""
        placement = PlacementSpec(disaggregate=self.disaggregate)
        return replace(default_document(), spec=PolicySpec(placement=placement))
