"""Owns the choice of Python names in the corpus and the cleaning of their docstrings.

Docstrings differ between Python versions, so nothing reads them at run time: `corpus.py`
freezes the result once into `corpus.jsonl`.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Final

MAX_ANSWER_CHARS: Final = 96
MIN_ANSWER_CHARS: Final = 12

# Types whose public methods are asked about as `type.method`, in this order.
TYPES: Final = (
    "builtins.str", "builtins.list", "builtins.dict", "builtins.set", "builtins.tuple",
    "builtins.int", "builtins.float", "collections.deque", "collections.Counter", "pathlib.Path",
    "threading.Event", "threading.Thread", "datetime.date", "asyncio.TaskGroup",
)  # fmt: skip

# Modules asked about as `the X module`.
MODULES: Final = (
    "math", "os.path", "itertools", "functools", "re", "random", "shutil", "statistics", "heapq",
    "bisect", "copy", "string", "textwrap", "glob", "tempfile", "contextlib", "base64", "operator",
    "threading", "queue", "subprocess", "inspect", "struct", "uuid", "gzip", "csv", "shlex", "gc",
    "socket", "calendar", "fractions", "logging", "urllib.parse", "traceback", "weakref", "html",
)  # fmt: skip

# Modules whose public functions and classes are asked about as `module.name`, in this order.
OPEN_MODULES: Final = (
    "math", "os.path", "itertools", "functools", "collections", "json", "re", "random", "time",
    "shutil", "statistics", "heapq", "bisect", "copy", "textwrap", "glob", "tempfile",
    "contextlib", "base64", "subprocess", "csv", "shlex", "secrets", "struct", "zlib", "gzip",
    "dataclasses", "weakref", "pprint",
)  # fmt: skip

# Deprecated, platform-bound, or with a first sentence that says nothing.
SKIPPED: Final = (
    "BaseExceptionGroup", "EnvironmentError", "Event.isSet", "IOError", "Path.link_to",
    "Thread.getName", "Thread.isDaemon", "Thread.setDaemon", "Thread.setName", "anext",
    "base64.decode", "base64.encode", "bool", "collections.UserList",
    "contextlib.asynccontextmanager", "contextlib.contextmanager", "copyright", "credits",
    "csv.Sniffer", "date.ctime", "date.fromisocalendar", "date.today", "datetime.ctime",
    "deque.index", "dict", "format", "functools.partial", "help", "int.conjugate",
    "itertools.repeat", "license", "os.path.normpath", "property", "random.paretovariate",
    "re.template", "shutil.chown", "shutil.make_archive", "time.clock_getres",
    "time.clock_gettime", "time.clock_gettime_ns", "time.clock_settime",
    "time.clock_settime_ns", "time.get_clock_info", "time.gmtime", "time.localtime",
    "time.pthread_getcpuclockid", "time.tzset",
)  # fmt: skip

SIGNATURE_LINE: Final = re.compile(
    r"^\s*[\w.]+\([^\n]*\)?\s*(->[^\n]*|--[^\n]*)?$|^[^\n]*->[^\n]*$"
)
SENTENCE_END: Final = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)\.(?=\s+[A-Z(]|$)")


def prose(doc: str) -> str:
    """The docstring's first paragraph on one line, without signature lines."""
    for paragraph in re.split(r"\n\s*\n", doc.strip()):
        lines = [line for line in paragraph.splitlines() if not SIGNATURE_LINE.match(line)]
        if lines:
            return re.sub(r"\s+", " ", " ".join(lines).replace("`", "")).strip()
    return ""


def first_sentence(doc: object) -> str | None:
    """The docstring's first sentence, or None when it is no short plain sentence."""
    text = prose(doc) if isinstance(doc, str) else ""
    text = re.sub(r"\*(\w+)\*", r"\1", text)
    found = SENTENCE_END.search(text)
    text = text[: found.start()] if found else text
    if not text or re.search(r"->|>>>|--|:\w+:|[^\x20-\x7e]|[:;,]$", text):
        return None
    text = text[0].upper() + text[1:] + "."
    return text if MIN_ANSWER_CHARS <= len(text) <= MAX_ANSWER_CHARS else None


def resolve(path: str) -> object:
    """The module or the attribute of a module that a dotted path names."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        owner, _, name = path.rpartition(".")
        return getattr(importlib.import_module(owner), name)


def public_names(owner: object) -> list[str]:
    """Public callables of a module or type, in alphabetical order, own ones only."""
    exported = getattr(owner, "__all__", None)
    names = sorted(exported) if exported else sorted(vars(owner))
    return [n for n in names if not n.startswith("_") and callable(getattr(owner, n, None))]


def builtin_subjects() -> Iterator[tuple[str, str, str]]:
    """(kind, subject, answer) for the builtin functions, types and exceptions."""
    owner = importlib.import_module("builtins")
    for name in public_names(owner):
        value = getattr(owner, name)
        answer = first_sentence(value.__doc__)
        if answer and name not in SKIPPED:
            yield ("class" if inspect.isclass(value) else "function"), name, answer


def member_subjects(path: str) -> Iterator[tuple[str, str, str]]:
    """(kind, subject, answer) for the public members of one module or type."""
    owner = resolve(path)
    prefix = path.removeprefix("builtins.")
    prefix = prefix if inspect.ismodule(owner) else prefix.rpartition(".")[2]
    inherited = {"An enumeration.", type.__doc__, object.__doc__, Exception.__doc__}
    for name in public_names(owner):
        value = getattr(owner, name)
        answer = None if value.__doc__ in inherited else first_sentence(value.__doc__)
        if answer and f"{prefix}.{name}" not in SKIPPED:
            yield ("class" if inspect.isclass(value) else "function"), f"{prefix}.{name}", answer


def module_subjects() -> Iterator[tuple[str, str, str]]:
    """(kind, subject, answer) for the modules themselves."""
    for path in MODULES:
        answer = first_sentence(resolve(path).__doc__)
        if answer:
            yield "module", path, answer


def python_subjects() -> Iterator[tuple[str, str, str]]:
    """All (kind, subject, answer) triples of the Python part, most common names first."""
    yield from builtin_subjects()
    for path in TYPES:
        yield from member_subjects(path)
    yield from module_subjects()
    for path in OPEN_MODULES:
        yield from member_subjects(path)
