"""`penstock up` and `penstock down` as an operator types them: from nothing to the first answer, to
nothing."""

import json
import os
import signal
from pathlib import Path

import pytest

from cluster.secrets import load_secrets
from tests.deploy.polling import until
from tests.deploy.ray_operator import (
    ANSWER,
    MACHINES,
    UP,
    an_operator,
    answer_at,
    files_with,
    left_of,
)
from tests.written_secrets import written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


async def test_from_up_to_the_first_answer_to_nothing_left(tmp_path: Path) -> None:
    async with an_operator(tmp_path, MACHINES) as operator:
        file = operator.write()
        said = operator.up(file)
        [router] = said["routers"]
        assert answer_at(router) == ANSWER
        pids = {name: each["pid"] for name, each in said["processes"].items()}
        assert set(pids) == {"router-0", "prompts-0", "answers-0"}
        machines = {each["machine"] for each in said["processes"].values()}
        assert machines <= {"127.0.0.2", "127.0.0.3"}

        ended = operator.penstock("status", "--json")
        assert ended.returncode == 0, ended.stderr
        workers = json.loads(ended.stdout)["workers"]
        moved = {pair["transport"] for each in workers for pair in each["load"]["pairs"]}
        assert moved == {"shared_memory"}  # they share this machine's memory, and its directory

        again = operator.penstock(*UP, file)
        assert "Nothing is to be changed." in again.stderr
        assert operator.pids(file) == pids

        os.kill(pids["answers-0"], signal.SIGKILL)
        until(lambda: operator.pids(file)["answers-0"] != pids["answers-0"], "it is healed")
        assert answer_at(router) == ANSWER

        secrets = load_secrets(tmp_path / "lab-secrets.yaml")
        planted = [each.encode() for each in written(secrets)]
        assert list(files_with(operator.machines.folder, planted)) == []

        with operator.following("answers-0") as following:
            assert following.stdout
            first = following.stdout.readline()  # of the dead process
            ended = operator.penstock("down")
            assert ended.returncode == 0, ended.stderr
            followed = first + following.stdout.read()
        assert following.returncode == 0, followed
        assert followed.count("configuration: ") == 2  # of the dead process, and of its successor
        assert "draining" in followed
        ended = operator.penstock("logs", "--cluster", operator.called("lab"))
        assert ended.returncode == 0, ended.stderr
        told = {line.split()[0] for line in ended.stdout.splitlines()}
        assert told == {"router-0", "prompts-0", "answers-0"}
        assert left_of(operator.called("lab")) == []
        assert operator.penstock("down").returncode == 4
