"""A peer of the engine: in an environment of its own, which is made when asked for, and in a
process of its own, which takes its turns when told to."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]


class PeerUnavailable(Exception):
    """It takes no part, and why, in one sentence."""


def make_environment(folder: Path, version: str, install: Callable[[list[str]], None]) -> None:
    """Makes it, unless this version is there. `install` gets the command of its pip. Raises
    PeerUnavailable."""
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text() == version:
        return
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install([*pip, "--disable-pip-version-check"])
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerUnavailable(f"its environment cannot be made: {error}") from error
    stamp.write_text(version)


class EnginePeer:
    """One engine on one checkpoint, in float32."""

    def __init__(
        self, name: str, folder: Path, checkpoint: Path, *args: str, settings: Mapping[str, str]
    ) -> None:
        """Runs the module bench.NAME_process there. Raises PeerUnavailable."""
        self.name = name
        if not (folder / "installed").exists():
            raise PeerUnavailable("it has no environment here: make one with --make-peers")
        module = f"bench.{name.replace('-', '_')}_process"
        self._process = subprocess.Popen(
            [str(folder / "bin" / "python"), "-m", module, str(checkpoint), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **settings},
        )
        self._answer()

    def run(self, prompts: list[list[int]], num_steps: int) -> float:
        """Seconds of the prompts with 0 steps, else of so many decode steps behind them."""
        took: float = self._ask(prompts=prompts, num_steps=num_steps)["seconds"]
        return took

    def tokens(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Greedy."""
        found: list[list[int]] = self._ask(prompts=prompts, num_tokens=num_tokens)["tokens"]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerUnavailable(f"its process ended with {self._process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def answer_questions(answer: Callable[..., dict[str, Any]], answers: Any) -> None:
    """The peer's end: questions are lines of JSON on stdin."""
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)
