"""Notes what `penstock up` leaves for its user's other commands, until `penstock down`: where the
routers of a cluster are that runs on other machines. Nobody's life holds it: it may be out of date.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_BYTES = 1 << 14
DESCRIBED = ".yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedNote:
    """One cluster."""

    name: str
    model: str
    routers: tuple[str, ...]  # where clients come in
    internal: tuple[str, ...]  # where calls of the cluster do, router by router
    secrets_file: str
    certificate: str = ""  # the file that clients are shown; empty: no TLS is spoken
    ray: str = ""  # its head's address; empty: not told


def placed() -> list[PlacedNote]:
    """Reads the notes of this user, by name. What cannot be read is none."""
    found = {}
    with contextlib.suppress(OSError):
        for path in sorted(_folder().glob("*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                said = json.loads(path.read_bytes()[:MAX_BYTES])
                doors = {key: tuple(said[key]) for key in ("routers", "internal")}
                note = PlacedNote(**{**said, **doors})
                found[note.name] = note
    return list(found.values())


def placed_at(address: str) -> PlacedNote | None:
    """The one that has a router there."""
    return next((note for note in placed() if address in note.routers + note.internal), None)


def placed_as(name: str | None) -> PlacedNote | None:
    """The one of this name."""
    return next((note for note in placed() if note.name == name), None)


def leave(note: PlacedNote, described: str) -> None:
    """Leaves a note in the place of the one from before. `described`: the cluster's file, as it is
    in force. Raises OSError."""
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for end, text in ((DESCRIBED, described), (".json", json.dumps(asdict(note)))):
        fresh = folder / f"{note.name}.{os.getpid()}"
        fresh.write_text(text)
        fresh.replace(folder / f"{note.name}{end}")


def described(name: str) -> str:
    """A cluster's file, as `up` has read it. Raises OSError where it was never typed here."""
    return (_folder() / f"{name}{DESCRIBED}").read_text()


def forget(name: str) -> None:
    with contextlib.suppress(OSError):
        for end in (".json", DESCRIBED):
            (_folder() / f"{name}{end}").unlink(missing_ok=True)


def _folder() -> Path:
    """Raises OSError where this user has no such place."""
    for place in _homes():
        return place
    raise FileNotFoundError("neither HOME nor XDG_RUNTIME_DIR is set")


def _homes() -> Iterator[Path]:
    if home := os.environ.get("HOME"):
        yield Path(home) / ".penstock" / "placed"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "penstock" / "placed"
