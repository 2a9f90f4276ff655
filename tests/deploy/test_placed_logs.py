"""Logs of many machines read as those of one, whoever of them answers."""

from pathlib import Path
from typing import Any

import pytest

from deploy import on_machine
from deploy.log_dir import placed_log_root
from deploy.log_pieces import PiecesAsked, as_json
from deploy.placed_logs import PlacedLogs
from deploy.placement import Machine, Reply
from penstock.cli.log_lines import Logs


class FakeRay:
    """Of machines whose state directories lie here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, states: dict[str, Path]) -> None:
        self._monkeypatch = monkeypatch
        self._states = states
        self.dead: set[str] = set()
        self.asked: list[list[str]] = []

    def machines(self) -> list[Machine]:
        return [Machine(machine_id=name, address=name) for name in self._states]

    def logs(
        self, machines: list[Machine], cluster: str, asked: PiecesAsked, timeout_s: float
    ) -> dict[str, Reply]:
        self.asked.append([machine.machine_id for machine in machines])
        replies = {}
        for machine in machines:
            if machine.machine_id in self.dead:
                replies[machine.machine_id] = Reply(fault="it is gone")
                continue
            state = self._states[machine.machine_id]
            self._monkeypatch.setenv("XDG_STATE_HOME", str(state))
            told = on_machine.logs(f"{cluster}-1", asked)
            replies[machine.machine_id] = Reply(text=as_json(told))
        return replies


def write(monkeypatch: pytest.MonkeyPatch, state: Path, process: str, *seconds: int) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    folder = placed_log_root() / "lab-1"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{process}.log").open("a") as file:
        file.writelines(f"2026-01-01T00:00:{each:02d}.000Z {process} {each}\n" for each in seconds)


def last_words(logs: Logs) -> list[str]:
    return [line.text.rpartition("Z ")[2] for line in logs.lines()]


def test_machines_are_read_together_in_order_and_one_that_is_known_twice_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"a": tmp_path / "1", "b": tmp_path / "2", "b again": tmp_path / "2"}
    write(monkeypatch, states["a"], "router-0", 1, 4)
    write(monkeypatch, states["b"], "decode-0", 2, 3)
    ray: Any = FakeRay(monkeypatch, states)
    logs = Logs(PlacedLogs(ray, "lab", say=pytest.fail).pieces)
    assert last_words(logs) == ["router-0 1", "decode-0 2", "decode-0 3", "router-0 4"]
    write(monkeypatch, states["b"], "router-0", 5)  # placed there anew
    write(monkeypatch, states["b"], "decode-0", 6)
    assert last_words(logs) == ["router-0 5", "decode-0 6"]
    assert last_words(logs) == []


def test_a_machine_that_does_not_answer_is_named_once_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"a": tmp_path / "1", "b": tmp_path / "2"}
    write(monkeypatch, states["a"], "router-0", 1)
    write(monkeypatch, states["b"], "decode-0", 2)
    ray: Any = FakeRay(monkeypatch, states)
    ray.dead.add("b")
    said: list[str] = []
    logs = Logs(PlacedLogs(ray, "lab", say=said.append).pieces)
    assert last_words(logs) == ["router-0 1"]
    assert last_words(logs) == []
    assert said == ["The logs on b are not to be had: it is gone."]


def test_more_of_a_log_is_asked_of_its_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"a": tmp_path / "1", "b": tmp_path / "2"}
    write(monkeypatch, states["a"], "router-0", *range(60))
    write(monkeypatch, states["b"], "decode-0", 2)
    monkeypatch.setattr("deploy.log_pieces.PIECE_BYTES", 1000)
    ray: Any = FakeRay(monkeypatch, states)
    logs = Logs(PlacedLogs(ray, "lab", say=pytest.fail).pieces)
    assert len(last_words(logs)) == 61
    first, *rest = ray.asked
    assert first == ["a", "b"]
    assert rest
    assert all(each == ["a"] for each in rest)
