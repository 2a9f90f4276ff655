"""README and docs as data: their blocks, and the commands that they show."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": (ROOT / "README.md").read_text()}
PAGES |= {f"docs/{path.name}": path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}

PROGRAMS = {"penstock", "make", "python", "pytest", "mkdir", "systemctl", "journalctl"}
PROGRAMS |= {"grpcurl", "protoc", "ray", "curl"}
SHELL = ("", "sh")  # the languages of blocks that may hold commands
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n|\n(?= {4}))+)")
_COMMENT = re.compile(r"(?:^|\s+)# .*$")
_INLINE = re.compile(r"`((?:penstock|make|pytest|\.venv/bin/\w+|python) [^`]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """Something set apart on a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """In order, without prompts, comments and what is printed."""
        if self.language not in SHELL:
            return []
        lines = map(_bare, _logical_lines(self.text))
        return [line for line in lines if program(line) in PROGRAMS]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    return [block for page in PAGES for block in _blocks(page)]


def inline_commands() -> list[tuple[str, str]]:
    """Those in running text and tables: page and command."""
    return [
        (page, " ".join(command.split()))
        for page, text in PAGES.items()
        for command in _INLINE.findall(_FENCED.sub("", text))
    ]


def program(command: str) -> str:
    """What a command starts: variables set for it are passed over, and so is where it lies."""
    words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
    return words[0].rpartition("/")[2] if words else ""


def _blocks(page: str) -> Iterator[Block]:
    text = PAGES[page]
    for found in _FENCED.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])
    # Fences keep their place, but hold nothing any more.
    rest = _FENCED.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in _INDENTED.finditer(rest):
        lines = [line.removeprefix("    ") for line in found[1].splitlines()]
        yield Block(page, rest.count("\n", 0, found.start()) + 1, "", "\n".join(lines) + "\n")


def _logical_lines(text: str) -> Iterator[str]:
    """Lines that a backslash or an open quote makes one."""
    whole = ""
    for line in text.splitlines():
        whole += line
        if whole.endswith("\\"):
            whole = whole.removesuffix("\\")
        elif _is_whole(whole):
            yield whole
            whole = ""
        else:
            whole += "\n"
    if whole:
        yield from whole.splitlines()  # prose with an apostrophe


def _is_whole(line: str) -> bool:
    if program(line.removeprefix("$ ")) not in PROGRAMS:
        return True
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


def _bare(line: str) -> str:
    return _COMMENT.sub("", line.removeprefix("$ ")).strip()
