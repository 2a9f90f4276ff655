"""Writes what a process says about itself: one line a record, as text or JSON, to stderr or into a
file that is rotated. A log that cannot be written ends nothing.

A record may bring `fields` (`extra={"fields": {...}}`): keys of its JSON, `key=value` in its text.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final, Literal, get_args

from cluster.errors import ConfigError

logger = logging.getLogger(__name__)

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "request", "warning", "error", "critical"]

REQUEST: Final = 25  # one line a request: above what a process says of itself, below warnings
NUM_OLD: Final = 3  # files beside the one that is written
FILE_BYTES: Final = 8 << 20
NO_LEVELS: Final[Mapping[str, str]] = {}
logging.addLevelName(REQUEST, "REQUEST")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Says what the YAML of every process may say about its log."""

    log_level: LogLevel | None = None  # request: a line each; null: PENSTOCK_LOG's, else info
    """debug to follow a fault; request to see requests alone."""
    # by logger, for it and those below: {router.relay: debug}; {}: all have log_level
    log_levels: Mapping[str, LogLevel] = field(default_factory=dict)
    """Where one part is to say more than the others, or less."""
    log_format: LogFormat = "text"  # json: an object a line
    """json where a program collects the lines."""
    log_file: Path | None = None  # rotated, with three older ones beside it; null: stderr
    """Where nothing else keeps what a process writes to stderr."""
    log_file_bytes: int = FILE_BYTES  # of one file of the log
    """Raise it where four files do not reach back to the day before."""


class TextLines(logging.Formatter):
    """A record is one line, tracebacks included, so that logs can be cut and counted."""

    converter = staticmethod(time.gmtime)  # machines are compared
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        said = super().format(record).replace("\n", "\\n").replace("\r", "\\r")
        return " ".join([said, *(f"{key}={value}" for key, value in _fields(record).items())])


class JsonLines(TextLines):
    """The same as one JSON object. `process`: who writes, as files of several are read together."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


class OwnFile(RotatingFileHandler):
    """A process's own log, bounded. `takes_stderr`: what libraries print goes there, too, and
    follows it to the next file."""

    def __init__(self, path: Path, num_bytes: int, *, takes_stderr: bool) -> None:
        """Raises OSError where the file cannot be written."""
        self._takes_stderr = takes_stderr
        super().__init__(path, maxBytes=num_bytes, backupCount=NUM_OLD, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        if self._takes_stderr:
            os.dup2(stream.fileno(), 2)
        return stream

    def doRollover(self) -> None:  # the library's name
        try:
            super().doRollover()
        except OSError:  # the directory cannot be written any more: the file is emptied instead
            with contextlib.suppress(OSError):
                os.truncate(self.baseFilename, 0)

    def handleError(self, record: logging.LogRecord) -> None:
        """Drops what cannot be written, on a full disk for example: saying so would be, too."""


def configure(
    level: str,
    style: LogFormat,
    file: Path | None,
    num_bytes: int = FILE_BYTES,
    *,
    levels: Mapping[str, str] = NO_LEVELS,
    takes_stderr: bool = True,
) -> None:
    """Sends the log to a file, where one can be written, else to stderr. `levels`: by logger.
    Raises ConfigError for a level that there is not, and for a file without room."""
    if level.lower() not in (known := get_args(LogLevel)):
        raise ConfigError(f"'{level}' is no log level: choose from {', '.join(known)}.")
    if num_bytes < 1:
        raise ConfigError(f"'log_file_bytes' is {num_bytes}: it must be at least 1.")
    sink: logging.Handler = logging.StreamHandler(sys.stderr)
    problem = None
    if file is not None:
        try:
            sink = OwnFile(file, num_bytes, takes_stderr=takes_stderr)
        except OSError as error:
            problem = error
    sink.setFormatter(JsonLines(_process(file)) if style == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[sink], force=True)
    logging.captureWarnings(True)  # which would be lines of another shape
    for name, own in levels.items():
        logging.getLogger(name).setLevel(own.upper())
    if problem is not None:
        logger.warning("the log goes to stderr: %s", problem)


def _process(file: Path | None) -> str:
    """Names who writes: as its file, else as what was started, `python -m router` for example."""
    if file is not None:
        return file.stem
    started = Path(sys.argv[0])
    return started.parent.name if started.stem == "__main__" else started.stem


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields
