"""A policy file as it is now, however it is replaced: overwritten, renamed over, or behind a
symlink that is swapped, as Kubernetes does with a ConfigMap.

It is read whole at each look: a few kilobytes. What two looks do not find the same is still being
written, and is not believed.
"""

import asyncio
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ConfigError
from router.policy_file.document import MAX_POLICY_BYTES
from router.settling import Settling


@dataclass(frozen=True, slots=True)
class FileText:
    text: str
    digest: str  # of the bytes


@dataclass(slots=True, eq=False)
class PolicyFile:
    path: Path
    # By the digest, or the error.
    _settling: Settling[str] = field(default_factory=lambda: Settling(""))

    async def read(self) -> FileText:
        """Reads what it says, and no look will hand that out again. Raises ConfigError."""
        try:
            found = await asyncio.to_thread(_read, self.path)
        except ConfigError as error:
            self._settling = Settling(error.message)
            raise
        self._settling = Settling(found.digest)
        return found

    async def look(self) -> FileText | None:
        """None while it says nothing new. Raises ConfigError, once, where it cannot be read."""
        try:
            found = await asyncio.to_thread(_read, self.path)
        except ConfigError as error:
            if self._settling.is_news(error.message):
                raise
            return None
        return found if self._settling.is_news(found.digest) else None

    def again(self) -> None:
        """Makes what was handed out last news again: it could not be dealt with."""
        self._settling.again()


def _read(path: Path) -> FileText:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}. Give a policy.") from error
    if len(content) > MAX_POLICY_BYTES:
        raise ConfigError(f"'{path}' has more than {MAX_POLICY_BYTES} bytes: give a policy.")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is no UTF-8 text: {error}.") from error
    return FileText(text, hashlib.sha256(content).hexdigest())
