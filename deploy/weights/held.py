"""Tells what lies in a directory to which weights were pulled. Pulls nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cluster.errors import WeightsError
from deploy.weights.manifest import MAX_MANIFEST_BYTES, NAME, Manifest, digest_of
from deploy.weights.origin import Weights

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
