"""Lists what a checkpoint consists of, as `sha256sum` writes it down. The digest of that text is
the digest of the whole: whoever has it knows every file."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from cluster.errors import WeightsError
from cluster.model_digest import counted_files

NAME: Final = "SHA256SUMS"
PARTIAL: Final = ".partial"
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_FILES: Final = 4096
MAX_NAME_CHARS: Final = 200
_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)")
_PART: Final = r"[A-Za-z0-9_+-][A-Za-z0-9_+.-]*"
_NAME: Final = re.compile(f"{_PART}(/{_PART})?")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Valid, and small enough."""

    text: bytes
    files: Mapping[str, str]  # the SHA-256 of each by its name, in hexadecimal digits

    @classmethod
    def parse(cls, text: bytes, where: str) -> "Manifest":
        """Raises WeightsError."""
        files: dict[str, str] = {}
        if len(text) > MAX_MANIFEST_BYTES:
            raise WeightsError(f"{where} has more than {MAX_MANIFEST_BYTES} bytes.")
        for number, line in enumerate(text.decode(errors="replace").splitlines(), start=1):
            found = _LINE.fullmatch(line)
            if found is None:
                raise WeightsError(
                    f"{where}, line {number}, is not as sha256sum writes it: write the file anew"
                    " with 'penstock weights digest DIR'."
                )
            digest, name = found.groups()
            _check_name(name, f"{where}, line {number},")
            if name in files:
                raise WeightsError(f"{where}, line {number}, names '{name}' once more.")
            files[name] = digest
        _check_number(files, where)
        return cls(text, files)

    @property
    def digest(self) -> str:
        return digest_of(self.text)


def digest_of(text: bytes) -> str:
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _check_name(name: str, where: str) -> None:
    if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name) or name.endswith(PARTIAL):
        raise WeightsError(
            f"{where} names '{name[:80]}': a file lies in the directory, or in one folder of it,"
            f" its name of at most {MAX_NAME_CHARS} letters, digits, '.', '_', '+' and '-', and"
            f" does not end with {PARTIAL}."
        )
    if name == NAME:
        raise WeightsError(f"{where} names {NAME} itself: take that line out.")


def _check_number(files: Mapping[str, str], where: str) -> None:
    if not 0 < len(files) <= MAX_FILES:
        raise WeightsError(f"{where} names {len(files)} files: give from 1 to {MAX_FILES}.")
    folders = {str(PurePosixPath(name).parent) for name in files}
    if both := sorted(folders & files.keys()):
        raise WeightsError(f"{where} names '{both[0]}' as a file and as a folder.")


def manifest_of(directory: Path) -> Manifest:
    """Reads all that counts there. Raises CheckpointError, WeightsError and OSError."""
    files = sorted(counted_files(directory))
    lines = [f"{file_digest(directory / name)}  {name}\n" for name in files]
    return Manifest.parse("".join(lines).encode(), str(directory))


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
