"""The configuration of one router process."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.addresses import Endpoint
from cluster.authority import Credentials
from cluster.config import check_range
from cluster.errors import ConfigError
from cluster.limits import Limits
from cluster.serving_config import ServingConfig
from router.policy import Disaggregate
from router.policy_file.document import PlacementSpec, PolicyDocument, PolicySpec, default_document
from router.standing import Assumed
from router.tls.certificate import TlsFiles

IN_MEMORY = "memory"
_COUNTS = ("max_in_flight", "num_text_threads", "index_budget_bytes")
_NOT_NEGATIVE = (
    "gather_s",
    "return_s",
    "max_waiting_bytes",
    "max_waiting_texts",
    "records_budget_bytes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig(ServingConfig):
    checkpoint: Path  # of the served model: tokenizer, template and configuration are read
    """Where the model lies elsewhere, or another one is served."""
    # HOST:PORT where workers, operators and `penstock` of other machines reach it, under TLS; null:
    # at 'address' alone
    internal: str | None = None
    """Where workers run on other machines, or with 'tls': then on this one, too."""
    http: str | None = "127.0.0.1:0"  # HOST:PORT for OpenAI's clients; port 0: any; null: none
    """Give a port that others know; null where all clients speak gRPC."""
    keys_file: Path | None = None  # of callers' API keys, mode 0600; null: nobody is asked
    """Where callers are to be told apart: always where others than this machine may come in."""
    # of both front doors: 'certificate', 'key' and perhaps 'client_ca', files as PEM, followed;
    # null: they speak no TLS
    tls: TlsFiles | None = None
    """Where clients come in from other machines, and no proxy ends TLS before it."""
    store: str = IN_MEMORY  # or the URL of a Redis, when there are several routers or machines
    """With a second router, or a second machine."""
    context_length: int | None = None  # tokens; narrows the checkpoint's own
    """Where prompts and answers are to be shorter than the model allows."""
    limits: Limits = field(default_factory=Limits)  # of one request
    """Where clients need more, or are to have less."""
    disaggregate: Disaggregate = Disaggregate.AUTO  # while no policy says it
    """To compare; auto is never worse than the better of the others."""
    policy_file: Path | None = None  # followed; null: the defaults, until a policy is applied
    """Where a file, and not a command, is to decide how requests are placed."""
    policy_state: Path | None = None  # keeps what is in force, where the store is in memory
    """Where an applied policy is to outlive a restart without a Redis."""
    assumed: Assumed = field(default_factory=Assumed)  # of what has not been measured yet
    """Where the first minute after a start places badly; measured values replace it."""
    max_in_flight: int = 1024  # requests; more are refused
    """Raise it with the number of workers; lower it to refuse sooner."""
    unread_s: float = 60.0  # a stream of which the client reads nothing for so long is ended
    """Raise it for clients that pause; lower it where they hold blocks that others wait for."""
    max_waiting_texts: int = 2048  # texts to be tokenised: all in flight may, and as many others
    """With `max_in_flight`: twice as many."""
    num_text_threads: int = 2  # threads that tokenise
    """Raise it where prompts wait to be tokenised and cores are idle."""
    index_budget_bytes: int = 128 << 20  # of the prefix index: half a million grains and more
    """Raise it where workers cache more grains in all than fit."""
    gather_s: float = 0.5  # so long workers may take to come back to a router that starts anew
    """Raise it where workers are many or far, and a new router refuses its first requests."""
    # of what was decided lately, for who asks why; 0: nothing, and no shadow decides
    records_budget_bytes: int = 8 << 20
    """Raise it where requests that matter can no longer be explained."""
    return_s: float = 30.0  # so long who left without a word is expected back, and waited for
    """Raise it where workers take longer to start; lower it to refuse sooner instead of waiting."""
    max_waiting_bytes: int = 256 << 20  # of requests that wait for a worker; more are refused
    """Lower it where the router's memory is small."""

    def __post_init__(self) -> None:
        ServingConfig.__post_init__(self)  # by name: a class with slots is not the one written here
        check_range(self, *_COUNTS, at_least=1)
        check_range(self, *_NOT_NEGATIVE, at_least=0)
        check_range(self, "unread_s", above=0)
        self._check_open("address", self.address)
        if self.http is not None:
            self._check_door("http", self.http)
            self._check_open("http", self.http)
        if self.internal is not None:
            self._check_door("internal", self.internal)
        elif self.tls is not None:
            raise ConfigError(
                "'tls' is given and 'internal' is not: workers and commands do not come in where"
                " clients speak TLS; give an address for them, on this machine as 127.0.0.1:0."
            )
        if self.metrics is not None:
            self._check_door("metrics", self.metrics)
        if self.store != IN_MEMORY and "://" not in self.store:
            raise ConfigError(
                f"'store' is '{self.store}': give '{IN_MEMORY}' or a URL, redis://HOST:PORT/DB."
            )
        if self.policy_file is not None and self.disaggregate is not Disaggregate.AUTO:
            raise ConfigError(
                "'disaggregate' and 'policy_file' are both given: say it in the policy, as"
                " 'spec.placement.disaggregate'."
            )

    def _check_open(self, key: str, text: str) -> None:
        if not Endpoint.parse(text).is_open_to_others:
            return
        if self.keys_file is None and not self.insecure:
            raise ConfigError(
                f"'{key}' is '{text}', where others than this machine may come in, and nobody asks"
                " who they are: give API keys as 'keys_file' ('penstock keys add'), a loopback"
                " address, or say 'insecure: true' to let in whoever reaches it."
            )

    def _check_door(self, key: str, text: str) -> None:
        """A door beside that of gRPC clients."""
        try:
            door, front = Endpoint.parse(text), Endpoint.parse(self.address)
        except ConfigError as error:
            raise ConfigError(f"'{key}': {error}") from error
        if door.port and door == front:
            raise ConfigError(
                f"'{key}' is '{text}', where clients come in ('address'): give another port."
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
    def front_doors(self) -> list[str]:
        """Where clients come in."""
        return [self.address, *([self.http] if self.http else [])]

    @property
    def is_open(self) -> bool:
        """Tells whether clients come in from other machines, too."""
        return any(Endpoint.parse(each).is_open_to_others for each in self.front_doors)

    @property
    def document(self) -> PolicyDocument:
        """Gives what holds where no policy was given."""
        placement = PlacementSpec(disaggregate=self.disaggregate)
        return replace(default_document(), spec=PolicySpec(placement=placement))
