"""Runs other people's clients, unmodified, against a cluster of this checkout, and writes what came
of it into docs/ecosystem.md.

    .venv/bin/python scripts/ecosystem [CLIENT...]

Each client has an environment of its own, outside the repository (--home), which is made at its
first run and takes from 100 MB to 6 GB. The other clients' rows stay as they are.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clients import CLIENTS, ROOT, Asking, ClientFailed, OtherClient

PAGE = ROOT / "docs" / "ecosystem.md"
ROWS = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)
FAILED = "| failed |"
HEAD = "| client | version | what it does | what came of it |\n|---|---|---|---|\n"


def main() -> int:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("client", nargs="*", help=f"of {', '.join(CLIENTS)}; all without one")
    parser.add_argument("--home", type=Path, default=cache / "penstock" / "ecosystem")
    given = parser.parse_args()
    if unknown := sorted({*given.client} - {*CLIENTS}):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
    names = given.client or list(CLIENTS)
    pythons = {name: installed(CLIENTS[name], given.home / name) for name in names}
    with cluster(given.home) as address:
        rows = {name: row(name, address, pythons[name]) for name in names}
    write(rows)
    return int(any(row.endswith(FAILED) for row in rows.values()))


def installed(client: OtherClient, home: Path) -> Path:
    """Makes its environment, unless it is there."""
    python, stamp = home / "bin" / "python", home / "installed"
    wanted = "\n".join((*client.requires, *client.drops))
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing {client.requires[0]}.", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *client.requires], check=True)
        if client.drops:
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", *client.drops], check=True)
        stamp.write_text(wanted)
    return python


@contextmanager
def cluster(home: Path) -> Iterator[str]:
    """Runs a prefill and a decode worker with the model that ships; gives its HTTP address."""
    names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "serve", "--port", "0", "--http-port", "0", "--json"],
        cwd=ROOT,
        env={**os.environ, **{name: str(home / "cluster") for name in names}},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["http"])
    finally:
        process.terminate()
        process.wait()


def row(name: str, address: str, python: Path) -> str:
    client = CLIENTS[name]
    package, _, version = client.requires[0].partition("==")
    print(f"Asking by {package} {version}.", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            came = client.ask(Asking(python, address, Path(scratch)))
        except (ClientFailed, subprocess.TimeoutExpired) as error:
            print(error, file=sys.stderr)
            came = FAILED.strip(" |")
    print(f"{package}: {came}.", file=sys.stderr)
    return f"| {package} | {version} | {client.does} | {came} |"


def write(rows: dict[str, str]) -> None:
    """Keeps the rows of those that were not asked."""
    page = PAGE.read_text(encoding="utf-8")
    found = ROWS.search(page)
    assert found, f"{PAGE} has no place for results"
    known = {line.split(" | ")[0]: line for line in found[0].splitlines()}
    known |= {line.split(" | ")[0]: line for line in rows.values()}
    packages = [f"| {client.requires[0].partition('==')[0]}" for client in CLIENTS.values()]
    lines = [known[package] for package in packages if package in known]
    PAGE.write_text(ROWS.sub(lambda _: HEAD + "\n".join(lines) + "\n", page), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
