"""Names the wanted weights, and where they come from. Knows nothing of how they are moved."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cluster.document.keys import meaning
from cluster.errors import WeightsError
from cluster.process import cache_folder

FILE: Final = "file"
SCHEMES: Final = (FILE, "https", "http", "s3", "gs", "az")
MAX_SOURCE_CHARS: Final = 2048
DESCRIBED: Final = "described"  # in the name of a directory that has all but the weights
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A checkpoint that each machine pulls once."""

    source: str = field(
        metadata=meaning(
            "a directory with a SHA256SUMS: a path, file://, https://, http://, s3://BUCKET/...,"
            " gs://BUCKET/... or az://CONTAINER/..."
        )
    )
    digest: str = field(
        metadata=meaning("of that SHA256SUMS, as 'penstock weights digest DIR' tells it")
    )

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError(
                f"'digest' is '{self.digest[:80]}': give sha256: and 64 hexadecimal digits, as"
                " 'penstock weights digest DIR' prints them."
            )
        _check_source(self.source)

    @property
    def url(self) -> str:
        """Gives the URL of the directory, without a slash at its end."""
        found = Path(self.source).as_uri() if self.source.startswith("/") else self.source
        return found.rstrip("/")

    @property
    def name(self) -> str:
        """The last part of where they come from."""
        return unquote(self.url.rpartition("/")[2])


def _check_source(source: str) -> None:
    """Raises ValueError, without what may be a secret."""
    if source.startswith("/"):
        if len(source) > MAX_SOURCE_CHARS or "\0" in source:
            raise ValueError(f"'source' is no path of at most {MAX_SOURCE_CHARS} characters.")
        return
    try:
        url = urlsplit(source)
        is_whole = bool(url.path if url.scheme == FILE else url.hostname)
    except ValueError:
        is_whole = False
    if not is_whole or url.scheme not in SCHEMES or len(source) > MAX_SOURCE_CHARS:
        raise ValueError(
            "'source' is no place that weights can be pulled from: give an absolute path, or a"
            f" URL that begins with one of {', '.join(f'{each}://' for each in SCHEMES)}."
        )
    if "@" in url.netloc or url.query or url.fragment:
        raise ValueError(
            "'source' holds a user, a password, or a part after '?' or '#', and a cluster's file"
            " may be read by many: give the bare URL; each machine's own environment or role lets"
            " it in."
        )
    if _CONTROL.search(source):
        raise ValueError("'source' has a space or a control character: write it as %20 and so on.")


def kept_in(weights: Weights, directory: str = "", *, is_described: bool = False) -> Path:
    """Names the place of the weights on this machine: there, or in this user's cache.
    `is_described`: no weights, only what says what they are. Raises WeightsError."""
    if directory and not is_described:
        return Path(directory)
    folder = cached_weights()
    if folder is None:
        raise WeightsError(
            "Neither XDG_CACHE_HOME nor HOME is set here, so there is no cache for the weights:"
            " give their directory as 'checkpoint'."
        )
    name = weights.digest.removeprefix("sha256:")
    return folder / (f"{name}.{DESCRIBED}" if is_described else name)


def cached_weights() -> Path | None:
    """Names the folder of all that lie in this user's cache; None: it has none."""
    caches = cache_folder()
    return None if caches is None else caches / "weights"
