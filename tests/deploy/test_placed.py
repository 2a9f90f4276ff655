"""A placed process on its machine, without whoever places it: stand-ins for the processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.log_dir import placed_log_root
from deploy.orphan import end_orphan, note_process
from deploy.placed import PlacedState, PlacedSupervisor, StartOrder, process_plan, reached_at
from deploy.plan import Part
from deploy.run_dir import RunDir, clear, shared_path, sweep
from tests.deploy.placed_orders import MACHINE, QUICK, order_of
from tests.deploy.polling import is_alive, until

Place = Callable[..., PlacedSupervisor]


@pytest.fixture(autouse=True)
def kept_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return placed_log_root() / "lab"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Starts stand-ins that end with the test."""
    started: list[PlacedSupervisor] = []

    def start(*, gpus: tuple[str, ...] = (), **said: Any) -> PlacedSupervisor:
        order = order_of(tmp_path, **said)
        placed = PlacedSupervisor(
            order,
            machine=MACHINE,
            directory="lab",
            gpus=gpus,
            supervision=QUICK,
            run_dir_parent=tmp_path,
        )
        started.append(placed)
        return placed

    yield start
    for placed in started:
        placed.stop(0.0)


def until_ready(placed: PlacedSupervisor) -> int:
    until(lambda: bool(placed.state().address), "it is ready")
    return placed.state().pid


@pytest.mark.slow
def test_it_runs_with_the_threads_and_gpus_that_it_was_given_and_nothing_of_the_placers(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/token")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    pid = until_ready(place(gpus=("1", "3")))
    environment = psutil.Process(pid).environ()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert not [name for name in environment if name.startswith("RAY_")]
    assert "PATH" in environment


def listens(order: StartOrder, **ports: int) -> list[Any]:
    config = process_plan(order, Path("here"), Path("log"), MACHINE, ports=ports).config
    return [config[key] for key in ("address", "internal") if key in config]


def test_a_worker_listens_at_its_machines_address_in_its_directory(tmp_path: Path) -> None:
    order = order_of(tmp_path)
    assert process_plan(order, tmp_path, Path("log"), MACHINE).config["run_dir"] == str(tmp_path)
    assert listens(order) == [f"{MACHINE}:0"]
    assert listens(order_of(tmp_path, address="[::1]:0")) == [f"{MACHINE}:0"]
    assert listens(order_of(tmp_path, address="0.0.0.0:50051")) == ["0.0.0.0:50051"]


def test_a_front_door_opens_to_no_more_than_was_ordered(tmp_path: Path) -> None:
    order = replace(order_of(tmp_path, internal="127.0.0.1:0"), part=Part.ROUTER)
    assert listens(order) == ["127.0.0.1:0", f"{MACHINE}:0"]
    assert listens(order, address=7, internal=8) == ["127.0.0.1:7", f"{MACHINE}:8"]
    config = {**order.config, "address": "0.0.0.0:50051", "internal": "127.0.0.1:50052"}
    doors = ["0.0.0.0:50051", f"{MACHINE}:50052"]
    assert listens(replace(order, config=config), address=7, internal=8) == doors
    for http, at in (("127.0.0.1:0", "127.0.0.1:9"), ("0.0.0.0:8000", "0.0.0.0:8000")):
        ordered = replace(order, config={**order.config, "http": http})
        plan = process_plan(ordered, Path("here"), Path("log"), MACHINE, ports={"http": 9})
        assert plan.config["http"] == at
    ordered = replace(order, config={**order.config, "http": None})
    plan = process_plan(ordered, Path("here"), Path("log"), MACHINE, ports={})
    assert plan.config["http"] is None
    assert reached_at("0.0.0.0:50051", MACHINE) == f"{MACHINE}:50051"
    assert reached_at(f"{MACHINE}:7", MACHINE) == f"{MACHINE}:7"


def test_what_it_is_told_survives_the_way_and_has_no_secret(tmp_path: Path) -> None:
    order = order_of(tmp_path)
    assert StartOrder.from_json(order.as_json()) == order
    secret = (tmp_path / "secrets.yaml").read_text().split("cluster_token: ")[1].split()[0]
    assert secret not in order.as_json()


def test_what_a_release_before_or_after_says_is_understood(tmp_path: Path) -> None:
    order = order_of(tmp_path)
    later = json.dumps({**json.loads(order.as_json()), "color": "blue"})
    assert StartOrder.from_json(later) == order
    state = PlacedState(order=later, host="one", machine=MACHINE)
    said = json.loads(state.as_json())
    assert PlacedState.from_json(json.dumps({**said, "mood": 7})) == state
    earlier = {key: each for key, each in json.loads(later).items() if "version" not in key}
    assert StartOrder.from_json(json.dumps(earlier)) == order


@pytest.mark.slow
def test_a_dead_process_is_started_again_and_counted(place: Place) -> None:
    placed = place()
    pid = until_ready(placed)
    os.kill(pid, signal.SIGKILL)
    until(lambda: placed.state().pid not in (0, pid), "another runs")
    until_ready(placed)
    assert placed.state().restarts == 1


@pytest.mark.slow
def test_a_frozen_process_is_killed_and_replaced(place: Place) -> None:
    placed = place()
    pid = until_ready(placed)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not is_alive(pid), "the frozen one is dead")
    until(lambda: placed.state().restarts == 1, "another runs")


@pytest.mark.slow
def test_one_that_cannot_start_says_why_and_is_tried_again(place: Place) -> None:
    placed = place(fault="refuses")
    until(lambda: "truncated; download it again" in placed.state().said, "it said why")
    assert placed.state().address == ""


@pytest.mark.slow
def test_those_of_one_machine_share_a_directory_and_the_last_takes_it_away(
    place: Place, tmp_path: Path, kept_logs: Path
) -> None:
    first, second = place(name="decode-0"), place(name="decode-1")
    pids = [until_ready(first), until_ready(second)]
    shared = shared_path("lab", tmp_path)
    assert {path.name for path in shared.glob("*.yaml")} == {"decode-0.yaml", "decode-1.yaml"}
    assert sweep(tmp_path) == []
    assert first.stop()
    assert shared.exists()
    assert second.stop()
    assert not shared.exists()
    assert {path.name for path in kept_logs.glob("*.log")} == {"decode-0.log", "decode-1.log"}
    assert (tmp_path / "journal").read_text().split() == ["decode-0", "decode-1"]
    assert not any(map(is_alive, pids))


@pytest.mark.slow
def test_one_that_ignores_its_drain_is_ended_at_the_bound(place: Place) -> None:
    placed = place(fault="deaf")
    pid = until_ready(placed)
    assert not placed.stop()
    assert not is_alive(pid)


@pytest.mark.slow
def test_a_killed_launcher_takes_its_process_with_it_and_its_successor_one_that_is_deaf(
    place: Place, tmp_path: Path
) -> None:
    for fault, is_deaf in (("", False), ("deaf", True)):
        (tmp_path / "order.json").write_text(order_of(tmp_path, fault=fault).as_json())
        script = Path(__file__).with_name("placed_process.py")
        command = [sys.executable, str(script), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
            assert launcher.stdout
            pid = int(launcher.stdout.readline())
            launcher.kill()
        if not is_deaf:
            until(lambda pid=pid: not is_alive(pid), "it follows its launcher")
    assert is_alive(pid)
    until_ready(place())
    assert not is_alive(pid)


@pytest.mark.slow
def test_a_launcher_whose_placer_dies_drains_and_ends(tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(order_of(tmp_path).as_json())
    script = Path(__file__).with_name("placed_process.py")
    with subprocess.Popen(["sleep", "600"]) as placer:
        command = [sys.executable, str(script), str(tmp_path), str(placer.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
            assert launcher.stdout
            pid = int(launcher.stdout.readline())
            placer.kill()
            assert launcher.wait(30) == 1
    assert not is_alive(pid)
    assert (tmp_path / "journal").read_text().split() == ["decode-0"]
    assert not shared_path("lab", tmp_path).exists()


def test_what_nobody_holds_is_cleared_by_whoever_comes_next(tmp_path: Path) -> None:
    path = shared_path("lab", tmp_path)
    left = RunDir.join("lab", parent=tmp_path)
    (path / "kv-of-the-dead").touch()
    os.close(left._held)
    again = RunDir.join("lab", parent=tmp_path)
    assert not (path / "kv-of-the-dead").exists()
    (path / "kv-of-the-living").touch()
    beside = RunDir.join("lab", parent=tmp_path)
    assert (path / "kv-of-the-living").exists()
    assert not clear(path)
    again.leave()
    beside.leave()
    assert not path.exists()
    assert clear(path)


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = shared_path("lab", tmp_path)
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write"):
        RunDir.join("lab", parent=tmp_path)


def test_a_note_whose_pid_is_another_process_ends_nobody(tmp_path: Path) -> None:
    note = tmp_path / "decode-0.process"
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        note_process(note, sleeper.pid)
        pid, began = note.read_text().split()
        note.write_text(f"{pid} {int(began) - 1}")
        assert not end_orphan(note)
        assert sleeper.poll() is None
        note_process(note, sleeper.pid)
        assert end_orphan(note)
    assert sleeper.returncode == -signal.SIGKILL
    assert not end_orphan(note)
