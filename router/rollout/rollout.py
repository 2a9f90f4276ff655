"""Says which policies are in force, on trial, and to be returned to: a value that all routers of
one store share, and how it changes. Pure; time comes in as an argument.
"""

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Final

from cluster.config import parse_config
from cluster.errors import ConfigError
from router.policy_file.document import MAX_POLICY_BYTES, PolicyDocument
from router.rollout.history import Author, PastChange, with_change

MAX_ROLLOUT_BYTES: Final = 10 * MAX_POLICY_BYTES  # three documents, escaped, and the history


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One document's time in force. Numbers rise and are never given twice."""

    number: int
    name: str
    digest: str  # of what it means
    source: str  # where it came from, for people
    at_s: float  # since when, seconds of the Unix epoch
    text: str  # the document


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A valid document that is to take effect."""

    text: str
    document: PolicyDocument
    source: str
    canary_share: float | None = None  # of the requests, instead of what the document says
    file_digest: str = ""  # of the bytes, where it is a file's

    def __post_init__(self) -> None:
        if self.canary_share is not None and not 0 < self.canary_share < 1:
            raise ConfigError(
                f"A canary gets {100 * self.canary_share:g} % of the requests: give more than 0"
                " and less than 100, or no share at all."
            )

    @property
    def is_tried_out(self) -> bool:
        return self.canary_share is not None or self.document.spec.canary is not None

    def generation(self, number: int, at_s: float) -> Generation:
        return Generation(
            number=number,
            name=self.document.metadata.name,
            digest=self.document.digest,
            source=self.source,
            at_s=at_s,
            text=self.text,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    active: Generation
    last_number: int
    previous: Generation | None = None  # what a rollback returns to
    canary: Generation | None = None
    canary_share: float | None = None  # None: as the canary's document says
    why: str = ""  # of the last change, a sentence
    file_digest: str = ""  # of the bytes that a policy file last said
    revision: int = 0  # rises with every change: of two, the greater is the later
    history: tuple[PastChange, ...] = ()  # the last changes, in order

    @classmethod
    def begin(cls, offer: Offer, at_s: float) -> "Rollout":
        why = f"Generation 1 is in force since the start: '{offer.source}'."
        return cls(
            active=offer.generation(1, at_s),
            last_number=1,
            why=why,
            file_digest=offer.file_digest,
        )

    def offered(self, offer: Offer, at_s: float) -> "Rollout":
        """Puts this document in force, or on trial. The same value, if it is so already."""
        offered = self._offered(offer, at_s)
        if not offer.file_digest or offer.file_digest == offered.file_digest:
            return offered
        return replace(offered, file_digest=offer.file_digest)

    def _offered(self, offer: Offer, at_s: float) -> "Rollout":
        digest = offer.document.digest
        if digest == self.active.digest:
            if self.canary is None:
                return self
            return self._settled(f"The canary was withdrawn for '{offer.source}'.")
        if self.canary and (digest, offer.canary_share) == (self.canary.digest, self.canary_share):
            return self
        generation = offer.generation(self.last_number + 1, at_s)
        if not offer.is_tried_out:
            why = f"Generation {generation.number} was given by '{offer.source}'."
            return self._with_active(generation, why)
        return replace(
            self,
            last_number=generation.number,
            canary=generation,
            canary_share=offer.canary_share,
            why=f"Generation {generation.number} of '{offer.source}' is on trial.",
        )

    def promoted(self, at_s: float, why: str) -> "Rollout":
        """The canary has proved itself. Its number stays: it is the same document."""
        assert self.canary is not None
        return self._with_active(replace(self.canary, at_s=at_s), why)

    def withdrawn(self, why: str) -> "Rollout":
        """The canary is over."""
        return self._settled(why)

    def rolled_back(self, at_s: float, reason: str = "") -> "Rollout":
        """Gives one without its canary; with none, the one before in force again, by a new number.

        Raises ConfigError where there is nothing to return to.
        """
        because = f": {reason}" if reason else ""
        if self.canary:
            return self._settled(f"The canary {self.canary.number} was rolled back{because}.")
        if self.previous is None:
            raise ConfigError("There is no policy to return to: this is the first one.")
        back = replace(self.previous, number=self.last_number + 1, at_s=at_s)
        why = (
            f"Generation {self.active.number} was rolled back to what {self.previous.number}"
            f" said{because}."
        )
        return self._with_active(back, why)

    def recorded(self, before: "Rollout", author: Author, at_s: float) -> "Rollout":
        """Gives one with what changed since `before` in its history, which nobody else writes."""
        is_new_trial = self.canary is not None and self.canary != before.canary
        meant = self.canary if self.canary is not None and is_new_trial else self.active
        change = PastChange(
            at_s=at_s,
            number=meant.number,
            name=meant.name,
            digest=meant.digest,
            why=self.why,
            author=author,
        )
        return replace(self, history=with_change(before.history, change))

    def _with_active(self, generation: Generation, why: str) -> "Rollout":
        return replace(
            self._settled(why),
            active=generation,
            last_number=max(self.last_number, generation.number),
            previous=self.active,
        )

    def _settled(self, why: str) -> "Rollout":
        return replace(self, canary=None, canary_share=None, why=why)


def encode_rollout(rollout: Rollout) -> bytes:
    return json.dumps(dataclasses.asdict(rollout), sort_keys=True).encode()


def decode_rollout(data: bytes, source: str) -> Rollout:
    """Passes over what another release says beyond this one. Raises ConfigError, which names
    `source`."""
    if len(data) > MAX_ROLLOUT_BYTES:
        raise ConfigError(f"{source} has {len(data)} bytes, more than {MAX_ROLLOUT_BYTES}.")
    try:
        mapping = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is no JSON: {error}.") from error
    return parse_config(Rollout, mapping, source=source, passes_over=True)
