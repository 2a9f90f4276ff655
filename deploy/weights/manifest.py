"""Lists what a checkpoint consists of, as `sha256sum` writes it down. The digest of that text is
the digest of the whole: whoever has it knows every file."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from cluster.errors import WeightsError
from cluster.model_digest import counted_files
from deploy.weights.origin import Weights

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


_WEIGHTS: Final = ".safetensors"

Which = Callable[[str], bool]  # of a file's name


def every(name: str) -> bool:
    """All files are wanted."""
    return True


def describes(name: str) -> bool:
    """Tells whether a file says what the weights are, and holds none."""
    return not name.endswith(_WEIGHTS)


def holds(directory: Path, weights: Weights, is_wanted: Which = every) -> bool:
    """False where nothing is. Raises WeightsError where something else is, and OSError."""
    if not directory.exists() or not any(directory.iterdir()):
        return False
    remedy = "name another directory as 'checkpoint', or take this one away"
    try:
        text = read_list(directory)
    except FileNotFoundError:
        raise WeightsError(f"{directory} holds no {NAME}, but something else: {remedy}.") from None
    if (found := digest_of(text)) != weights.digest:
        raise WeightsError(
            f"The {NAME} in {directory} has the digest {found}, and wanted is {weights.digest}:"
            f" {remedy}."
        )
    names = filter(is_wanted, Manifest.parse(text, f"{directory}/{NAME}").files)
    if lacking := [name for name in names if not (directory / name).is_file()]:
        raise WeightsError(f"{directory} lacks {lacking[0]}: take it away, to be pulled anew.")
    return True


def read_list(directory: Path) -> bytes:
    """Reads the list; what is more than one can be is cut. Raises OSError."""
    with (directory / NAME).open("rb") as file:
        return file.read(MAX_MANIFEST_BYTES + 1)
