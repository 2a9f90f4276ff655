"""What a process says of itself when it is asked."""

import os
import resource
import socket
import time
from pathlib import Path

import pytest

from cluster import facts_codec, host
from cluster.checkpoint_review import CheckpointReview, Note
from cluster.diagnosis import Diagnosis
from cluster.facts import Folder, ProcessFacts, StoreAnswer
from penstock.v1 import worker_pb2
from tests.redis_server import free_port, redis_server


@pytest.fixture
def secrets_file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.yaml"
    path.touch(mode=0o600)
    return path


async def test_a_process_knows_its_limits_and_its_machine(
    secrets_file: Path, tmp_path: Path
) -> None:
    facts = await Diagnosis(secrets_file=secrets_file, run_dir=tmp_path, num_threads=3).facts()
    assert abs(facts.unix_s - time.time()) < 5
    assert facts.machine == host.machine()
    assert facts.versions["penstock"]
    assert facts.wire_version >= 1
    assert facts.num_cpus == len(os.sched_getaffinity(0))
    assert facts.num_open_files > 3
    assert facts.max_open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert facts.secrets_mode == 0o600
    assert facts.store is None
    assert facts.num_threads == 3
    assert facts.run_dir is not None
    assert facts.run_dir.path == str(tmp_path)
    assert 0 < facts.run_dir.free_bytes <= facts.run_dir.num_bytes
    assert facts.run_dir.mode == tmp_path.stat().st_mode & 0o777
    assert facts.memory_bytes_per_s == 0


async def test_what_cannot_be_seen_is_left_out(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    facts = await Diagnosis(secrets_file=gone, run_dir=gone).facts()
    assert (facts.secrets_mode, facts.run_dir) == (None, None)


@pytest.mark.slow
async def test_a_store_that_answers_is_timed(secrets_file: Path) -> None:
    async with redis_server() as server:
        facts = await Diagnosis(secrets_file=secrets_file, store=server.url).facts()
    assert facts.store is not None
    assert facts.store.problem == ""
    assert 0 < facts.store.seconds < 5


async def test_a_store_that_is_away_is_told_without_its_password(secrets_file: Path) -> None:
    port = free_port()
    url = f"redis://:a-password@127.0.0.1:{port}/0"
    facts = await Diagnosis(secrets_file=secrets_file, store=url).facts()
    assert facts.store is not None
    assert facts.store.address == f"127.0.0.1:{port}"
    assert facts.store.problem
    assert "a-password" not in repr(facts)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_listening_sockets_are_those_of_this_process(family: socket.AddressFamily) -> None:
    host_name = "127.0.0.1" if family is socket.AF_INET else "::1"
    with socket.socket(family) as server, socket.socket(family) as idle:
        server.bind((host_name, 0))
        idle.bind((host_name, 0))
        written = f"127.0.0.1:{server.getsockname()[1]}"
        if family is socket.AF_INET6:
            written = f"[::1]:{server.getsockname()[1]}"
        assert written not in host.listening(), "it does not listen yet"
        server.listen()
        assert written in host.listening()
        assert not any(one.endswith(f":{idle.getsockname()[1]}") for one in host.listening())
    assert written not in host.listening()


@pytest.mark.parametrize(
    ("path", "file_system"),
    [("/dev/shm/run", "tmpfs"), ("/dev/shmother", "devtmpfs"), ("/home/x", "ext4")],
)
def test_the_innermost_mount_counts(path: str, file_system: str) -> None:
    mounts = "a / ext4 rw 0 0\nb /dev devtmpfs rw 0 0\nc /dev/shm tmpfs rw 0 0\n"
    assert host._file_system(Path(path), mounts) == file_system


def test_memory_speed_is_a_plausible_number() -> None:
    assert 1e8 < host.memory_bytes_per_s() < 1e12


FACTS = ProcessFacts(
    review=CheckpointReview(
        ignored=(Note("config.json", "training", ("a", "b")),), unknown=(Note("files", "", ("c",)),)
    ),
    unix_s=1.5,
    machine="m",
    versions={"penstock": "1", "torch": "2"},
    wire_version=1,
    memlock_bytes=None,
    max_open_files=0,
    num_open_files=3,
    num_cpus=2,
    num_threads=1,
    run_dir=Folder(path="/r", file_system="tmpfs", num_bytes=9, free_bytes=5, mode=0o700),
    listening=("127.0.0.1:1",),
    secrets_mode=0,
    store=StoreAnswer(address="h:1", seconds=0.5, problem="away"),
    checks_content=True,
    required_transport="tcp",
    memory_bytes_per_s=1e9,
)


def test_facts_travel_whole() -> None:
    data = facts_codec.facts_to_pb(FACTS).SerializeToString()
    assert facts_codec.facts_from_pb(worker_pb2.DiagnoseResponse.FromString(data)) == FACTS
