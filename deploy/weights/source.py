"""The door to obstore: reads files of one directory elsewhere, by range. Who this machine is there
is what its environment or its role says; nothing of that is told further."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import obstore
from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url

from cluster.errors import WeightsBrokenOff, WeightsError

# A request has so long to its last byte; what came by then is kept.
REQUEST_S: Final = 60
PIECE_BYTES: Final = 1 << 20
MAX_SIZE: Final = 1 << 43  # of one file
_BEHIND: Final = re.compile(r"\?\S*")  # of a URL, where signatures are
_CLIENT: Final = {
    "timeout": timedelta(seconds=REQUEST_S),
    "connect_timeout": timedelta(seconds=10),
    "allow_http": True,  # where the URL, or the machine's environment, says http
}
_RETRIES: Final = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


class WeightsSource:
    """A directory at a URL. All that it does raises WeightsError, and WeightsBrokenOff where it may
    go better later."""

    def __init__(self, url: str) -> None:
        self.url = url
        with _translated(url, ""):
            self._store = from_url(url, client_options=_CLIENT, retry_config=_RETRIES)  # type: ignore[call-overload]

    def size(self, name: str) -> int:
        with _translated(self.url, name):
            size = int(obstore.head(self._store, name)["size"])
        if not 0 <= size <= MAX_SIZE:
            raise WeightsError(f"{self.url}/{name} has {size} bytes: at most {MAX_SIZE} can be.")
        return size

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes of one file from `start` to before `end`, as they come; never more."""
        left = end - start
        with _translated(self.url, name):
            found = obstore.get(self._store, name, options={"range": (start, end)})
            if found.range[0] != start:
                raise WeightsError(f"{self.url}/{name} comes from byte {found.range[0]} instead.")
            for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)[:left]
                left -= len(piece)
                if left <= 0:
                    return

    def whole(self, name: str, max_bytes: int) -> bytes:
        """A small file."""
        size = self.size(name)
        if size > max_bytes:
            raise WeightsError(f"{self.url}/{name} has {size} bytes: at most {max_bytes} can be.")
        return b"".join(self.read(name, 0, size)) if size else b""


@contextmanager
def _translated(url: str, name: str) -> Iterator[None]:
    place = f"{url}/{name}" if name else url
    try:
        yield
    except FileNotFoundError as error:
        raise WeightsError(f"There is no {place}.") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise WeightsError(
            f"{place} may not be read from here: {_reason(error)}. What lets a machine in is its"
            " own environment or role."
        ) from error
    except NotSupportedError as error:
        raise WeightsError(
            f"{place} is not served in parts, so a pull that breaks off could not go on: put it on"
            " a server that answers Range."
        ) from error
    except BaseError as error:
        raise WeightsBrokenOff(f"{place} does not come: {_reason(error)}.") from error
    except ValueError as error:
        raise WeightsError(f"{place} is no address: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """The first line: others are for who debugs obstore."""
    return _BEHIND.sub("", str(error).partition("\n")[0]).strip(" .:")
