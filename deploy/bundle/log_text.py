"""Picks what of a log may be given away: our own records, without what an exception says; of what
else stands there, the places in the code."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

MAX_LINE: Final = 16 << 10  # characters
_OURS: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ [\w.]+ ")
_TRACEBACK: Final = "Traceback (most recent call last):"
_TYPE: Final = re.compile(
    r"((?:cluster|penstock)\.errors\.\w+"
    r"|(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning|Group))(?:: .*)?"
)
# Of tracebacks, and of what Python says of a process that crashes.
_HARMLESS: Final = re.compile(
    r"error: .*"  # the last words of our own processes (`cluster.process.run`)
    r"|Traceback \(most recent call last\):"
    r'|  File "[^"]{1,500}", line \d+(?:,? in [\w.<>]{1,200})?'
    r"|Fatal Python error: [A-Za-z ]{1,80}"
    r"|(?:Current thread|Thread) 0x[0-9a-f]+[^:]{0,80}\(most recent call first\):"
    r"|During handling of the above exception, another exception occurred:"
    r"|The above exception was the direct cause of the following exception:"
)


def without_content(line: str) -> str:
    """The same line, as far as it can hold neither a prompt nor an answer."""
    if _OURS.match(line):
        head, found, traceback = line.partition(f"\\n{_TRACEBACK}")
        kept = _places(f"{_TRACEBACK}{traceback}".split("\\n")) if found else ()
        return "\\n".join([head, *kept])[:MAX_LINE]
    if (record := _record(line)) is not None:
        if "exception" in record:
            record["exception"] = "\n".join(_places(str(record["exception"]).splitlines()))
        return json.dumps(record, ensure_ascii=False)[:MAX_LINE]
    [kept_line] = _places([line]) or [f"(of a library or a crash, left out: {len(line)} letters)"]
    return kept_line


def _record(line: str) -> dict[str, Any] | None:
    """One of ours, as JSON."""
    try:
        said = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    is_ours = isinstance(said, dict) and {"time", "level", "process", "logger"} <= said.keys()
    return said if is_ours else None


def _places(lines: list[str]) -> list[str]:
    return list(_harmless(lines))


def _harmless(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if _HARMLESS.fullmatch(line):
            yield line[:MAX_LINE]
        elif found := _TYPE.fullmatch(line):
            yield found[1]
