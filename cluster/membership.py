"""Knows who is in the cluster: one record a worker in the store, which lapses unless renewed.

Owns which life of a worker counts (the newest) and which workers may be together (those whose
fingerprints agree). Knows neither load nor liveness beyond the record's time to live.

A store may be made to say again what was once true: a record of a life that has left, or that a
newer one has replaced, does not count for whoever has seen so. Who leaves says so by a note in
the place of its record; only a worker that joins by its own word may be older than what is known.
"""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from cluster.errors import FingerprintMismatch, InvalidRequest, StaleIncarnation, StoreUnavailable
from cluster.fingerprint import loss_refused, mismatch
from cluster.store import Store
from cluster.types import Incarnation, Member, Role, WorkerId
from cluster.worker_codec import member_from_pb, member_to_pb
from penstock.v1 import worker_pb2

logger = logging.getLogger(__name__)

DEFAULT_TTL_S = 3.0
_PREFIX = "member/"
_MAX_ATTEMPTS = 5
_LEFT = b"left "  # begins the note of who has left; no record begins like this
_NOTE_TTL_S = 60.0  # routers look twice a second
_MAX_KNOWN = 16_384  # workers whose last life is remembered


@dataclass(frozen=True, slots=True)
class _Life:
    """The newest life of a worker that has been seen, in whichever role."""

    worker: WorkerId
    incarnation: Incarnation
    has_left: bool = False


def new_incarnation() -> Incarnation:
    """A name for this life of a process. A later life's name is greater."""
    return Incarnation(f"{time.time_ns():016x}-{secrets.token_hex(4)}")


def membership_mismatch(ours: Member, theirs: Member) -> list[str]:
    """Tells why two workers cannot be members together, a line each. A prefill worker must be able
    to write into every decode worker's pool; between others KV may move, but need not."""
    lines = mismatch(ours.worker.fingerprint, theirs.worker.fingerprint)
    by_role = {member.role: member.worker.fingerprint for member in (ours, theirs)}
    if len(by_role) == len(Role):
        lines += loss_refused(by_role[Role.PREFILL], by_role[Role.DECODE])
    return lines


class Membership:
    """The members, as records of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # A record is parsed once, not at each heartbeat of anyone.
        self._parsed: dict[bytes, Member | None] = {}
        self._lives: dict[WorkerId, _Life] = {}
        self._noted_past: set[Incarnation] = set()

    async def join(self, member: Member, *, ttl_s: float = DEFAULT_TTL_S) -> list[Member]:
        """Makes or renews a member's record, and returns all members.

        Raises:
            StaleIncarnation: a newer life of the same worker is a member.
            FingerprintMismatch: a member's KV cache could not be exchanged with this one's.
        """
        key, value = _key(member.role, member.worker.worker_id), _encoded(member)
        for _ in range(_MAX_ATTEMPTS):
            current = await self._store.get(key)
            if current != value:
                _check_newer(member, self._member(current))
                self._check_fits(member, await self.members())
            if await self._store.compare_and_set(key, current, value, ttl_s=ttl_s):
                self._saw(_life_of(member))
                return await self.members()
        raise StoreUnavailable(
            f"The record of '{member.worker.worker_id}' changed {_MAX_ATTEMPTS} times while it "
            "was renewed: is its id given to several workers?"
        )

    async def leave(self, worker_id: WorkerId, incarnation: Incarnation) -> bool:
        """Replaces the record of this life of a worker by a note that it has left. False: it has
        none."""
        for role in Role:
            key = _key(role, worker_id)
            current = await self._store.get(key)
            record = self._member(current)
            if record is not None and record.worker.incarnation == incarnation:
                note = _LEFT + incarnation.encode()
                self._saw(_Life(worker_id, incarnation, has_left=True))
                return await self._store.compare_and_set(key, current, note, ttl_s=_NOTE_TTL_S)
        return False

    async def members(self) -> list[Member]:
        """All members whose record has not lapsed, in the order of their keys: of a worker that
        has changed its role, the life that is newer."""
        records = await self._store.scan(_PREFIX)
        self._parsed = {value: self._member(value) for value in records.values()}
        for key, value in records.items():
            self._look(key, value)
        found = [member for key in sorted(records) if (member := self._parsed[records[key]])]
        counted = [member for member in found if not self._is_past(_life_of(member))]
        workers = {member.worker.worker_id for member in counted}
        for member in found:
            if member.worker.worker_id not in workers:  # else it has only changed its role
                self._note_past(member)
        return counted

    def _look(self, key: str, value: bytes) -> None:
        """Takes in what a record says of its worker."""
        if value.startswith(_LEFT):
            left = Incarnation(value.removeprefix(_LEFT).decode(errors="replace"))
            life = _Life(_worker_of(key), left, has_left=True)
        elif (member := self._parsed[value]) is not None:
            life = _life_of(member)
        else:
            return
        if not self._is_past(life):
            self._saw(life)

    def _is_past(self, life: _Life) -> bool:
        """Tells whether it has left, or been replaced, as far as we have seen."""
        known = self._lives.get(life.worker)
        if known is None or known.incarnation < life.incarnation:
            return False
        return known.has_left or known.incarnation > life.incarnation

    def _saw(self, life: _Life) -> None:
        self._lives.pop(life.worker, None)  # what was seen last is forgotten last
        self._lives[life.worker] = life
        if len(self._lives) > _MAX_KNOWN:
            self._lives.pop(next(iter(self._lives)))

    def _note_past(self, member: Member) -> None:
        worker = member.worker
        if worker.incarnation in self._noted_past or len(self._noted_past) >= _MAX_KNOWN:
            return
        self._noted_past.add(worker.incarnation)
        logger.warning(
            "passed over: the record of a past life of '%s', at %s, is in the store again: it was "
            "put back, or the worker's clock was, which then needs another id",
            worker.worker_id,
            worker.address,
        )

    def _member(self, value: bytes | None) -> Member | None:
        """None where there is no record, or none that we understand."""
        if value is None or value.startswith(_LEFT) or value in self._parsed:
            return self._parsed.get(value or b"")
        try:
            return member_from_pb(worker_pb2.RegisterRequest.FromString(value))
        except (DecodeError, InvalidRequest) as error:
            # Of another version, or of a stranger in the same store: not ours to delete.
            logger.warning("a member's record is passed over: %s", error)
            return None

    @staticmethod
    def _check_fits(member: Member, members: Sequence[Member]) -> None:
        for other in members:
            if other.worker.worker_id == member.worker.worker_id:
                _check_newer(member, other)
                continue
            diff = membership_mismatch(member, other)
            if diff:
                raise FingerprintMismatch(
                    f"'{member.worker.worker_id}' cannot join: it and member "
                    f"'{other.worker.worker_id}' differ in {'; '.join(diff)}. Start both from the "
                    "same checkpoint and settings."
                )


def _check_newer(member: Member, current: Member | None) -> None:
    if current is not None and current.worker.incarnation > member.worker.incarnation:
        raise StaleIncarnation(
            f"A newer life of '{member.worker.worker_id}' is a member, at "
            f"{current.worker.address}. Give each worker an id of its own."
        )


def _life_of(member: Member) -> _Life:
    return _Life(member.worker.worker_id, member.worker.incarnation)


def _worker_of(key: str) -> WorkerId:
    return WorkerId(key.removeprefix(_PREFIX).partition("/")[2])


def _key(role: Role, worker_id: WorkerId) -> str:
    return f"{_PREFIX}{role}/{worker_id}"


def _encoded(member: Member) -> bytes:
    # Deterministic, because records are compared as bytes.
    value: bytes = member_to_pb(member).SerializeToString(deterministic=True)
    return value
