"""Every command of README and docs does what it says when it is pasted: against one cluster, or
for a stated reason somewhere else or not at all."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock import Client
from penstock.cli.app import run
from tests.deploy.served import Served, serving
from tests.docs.pages import PAGES, ROOT, Block, blocks, inline_commands
from tests.docs.shims import make_shims

# Why what begins so is not run here.
NOT_RUN = {
    "make serve": "installs first; `penstock serve` is the cluster of this file",
    "make demo": "installs first; tests/deploy/test_serve.py runs `penstock demo`",
    "make test": "would run this test",
    "make quick": "is what a developer runs instead of this test",
    "make check": "is run by CI beside this test",
    "make prove": "would run this test",
    "penstock serve --model-dir": "tests/deploy/test_serve.py starts such clusters",
    "penstock serve --tls-cert": "tests/processes/test_tls_cluster.py starts such a cluster",
    "penstock serve -f": "tests/deploy/test_serve.py starts a cluster from a file",
    "penstock up": "needs a Ray; tests/deploy/test_ray.py brings a cluster up",
    "ray ": "needs machines; tests/machines types them on some that it makes",
    "penstock down": "needs a Ray; tests/deploy/test_ray.py takes a cluster down",
    "penstock logs answers-0 -f": "needs a Ray; tests/deploy/test_ray.py follows a worker",
    "penstock planner": "needs a Ray; tests/deploy/test_ray_planner.py asks it",
    "penstock logs --cluster": "needs a Ray; tests/deploy/test_ray.py reads one that is down",
    "penstock logs router -f": "goes on for ever; tests/penstock/test_logs.py runs it",
    "penstock stop": "would end the cluster of this file; tests/penstock/test_stop.py runs it",
    "python -m router": "tests/docs/test_operations.py starts these processes",
    "python -m prefill_worker": "tests/docs/test_operations.py starts these processes",
    "python -m decode_worker": "tests/docs/test_operations.py starts these processes",
    "penstock weights pull s3:": "needs a bucket; tests/penstock/test_weights_command.py pulls",
    "penstock secrets": "tests/docs/test_operations.py runs it",
    "penstock status -a 10.": "tests/docs/test_operations.py asks its own cluster",
    "penstock doctor -a 10.": "tests/docs/test_operations.py asks its own cluster",
    "penstock generate -a 10.": "tests/docs/test_operations.py asks its own cluster",
    "systemctl": "needs systemd and root; tests/docs/test_operations.py reads the unit",
    "journalctl": "needs systemd",
    "python examples/": "below, with what each prints",
    "grpcurl": "is no part of a checkout; tests/penstock/test_readme.py reads its request",
    "protoc": "the generators of other languages are no part of a checkout",
    ".venv/bin/python scripts/ecosystem": "installs other people's clients first",
}
# Only in `make prove`: minutes, and pages whose commands tests/simulator runs in other forms.
LONG = ("penstock plan", "penstock bench", ".venv/bin/penstock bench", ".venv/bin/python -m bench")
LONG_PAGES = ("docs/simulator.md", "docs/placement.md")
# The same with less to do.
SHORTER = dict.fromkeys(
    ("penstock simulate", "penstock policy replay", ".venv/bin/penstock policy replay"),
    " --limit 20",
)
# In running text: what stands for something, or is no whole command.
STAND_INS = {
    "penstock policy check FILE...": "penstock policy check mine.yaml",
    "penstock policy show [FILE]": "penstock policy show mine.yaml",
    "penstock policy diff BEFORE AFTER": "penstock policy diff mine.yaml mine.yaml",
    "penstock policy import FILE --from llm-d": "penstock policy import epp.yaml --from llm-d",
    "penstock policy import --from sglang -- FLAGS": "penstock policy import --from sglang --"
    " --policy cache_aware",
    "penstock policy replay --policy FILE": "penstock policy replay --policy mine.yaml --limit 20",
    "penstock policy apply FILE [--canary 5%]": "penstock policy apply mine.yaml --canary 5%",
    "penstock policy rollback [--reason TEXT]": "penstock policy rollback --reason late",
    "penstock policy status [--text]": "penstock policy status --text",
    "penstock policy schema > routing-policy.schema.json": "penstock policy schema",
    "penstock simulate": "penstock simulate --limit 20",
    "penstock cluster check FILE...": "penstock cluster check deploy/clusters/local.yaml",
    "penstock cluster show [FILE]": "penstock cluster show deploy/clusters/local.yaml",
    "penstock cluster diff BEFORE AFTER": "penstock cluster diff deploy/clusters/local.yaml"
    " deploy/clusters/local.yaml",
}
INCOMPLETE = {
    "penstock generate",
    "penstock serve",
    "penstock serve --policy FILE",
    "penstock explain",
}
INCOMPLETE |= {"penstock policy import", "penstock policy check", "penstock simulate --like"}
INCOMPLETE |= {"penstock bench", "penstock demo", "penstock serve --insecure"}
INCOMPLETE |= {"penstock serve --model-dir DIR", "penstock serve -f FILE", "penstock policy"}
INCOMPLETE |= {"penstock serve -f cluster.yaml", "penstock drain"}
INCOMPLETE |= {"penstock drain --wait", "penstock policy apply"}
INCOMPLETE |= {"penstock undrain", "penstock weights digest", "penstock weights remove"}
INCOMPLETE |= {"penstock serve --tls-cert FILE --tls-key FILE"}
INCOMPLETE |= {"penstock serve --keys keys.json", "penstock keys", "penstock keys list"}
# What runs may follow what other commands have applied; tests/deploy/test_applied_policy.py does.
INCOMPLETE |= {"penstock cluster diff -f FILE", "penstock cluster diff -f cluster.yaml"}
# 'reload' of a router that follows no file is refused.
CODES = {"penstock policy reload": 3}

EPP = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: prefix-cache-scorer}, {type: queue-scorer}, {type: max-score-picker}]
schedulingProfiles:
  - name: default
    plugins: [{pluginRef: prefix-cache-scorer, weight: 3}, {pluginRef: queue-scorer}]
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that looks like a checkout and may be written to, and the cluster that runs."""

    directory: Path
    served: Served
    request_id: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.directory / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.served.home),
            "PYTHONPATH": str(ROOT),
            "PENSTOCK_ADDRESS": self.served.address,
        }

    def filled_in(self, command: str) -> str:
        """With what stands for something replaced."""
        secrets = Path(self.served.ready["run_dir"]) / "secrets.yaml"
        command = command.replace("REQUEST_ID", self.request_id)
        command = command.replace("--trace PATH", "--trace traffic.jsonl.gz")
        command = command.replace("127.0.0.1:7000", self.served.address)
        command = command.replace("127.0.0.1:8000", str(self.served.ready["http"]))
        return command.replace("--secrets-file F", f"--secrets-file {secrets}")

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-ec", script],
            cwd=self.directory,
            env=self.environment,
            input="What does len do?\n",
            capture_output=True,
            text=True,
            timeout=600,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (directory / path.name).symlink_to(path)
    make_shims(directory / ".venv" / "bin")
    (directory / "mine.yaml").write_text((ROOT / "deploy/policies/default.yaml").read_text())
    (directory / "epp.yaml").write_text(EPP)
    shutil.copytree(ROOT / "shipped_model" / "penstock-tiny", directory / "my-model")
    for name in ("traffic.jsonl.gz", "requests.jsonl.gz"):
        (directory / name).symlink_to(ROOT / "simulator" / "conversations.jsonl.gz")
    with serving(tmp_path_factory.mktemp("home")) as served:
        with Client(served.address) as client:
            answer = client.generate(messages=[("user", "What does len do?")]).result()
        yield Place(directory, served, answer.accepted.request_id)


def reason_not_to_run(command: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


def runs() -> Iterator[Any]:
    """The commands of each block that are run, together: one may need what another wrote."""
    for block in blocks():
        wanted = [each for each in block.commands if reason_not_to_run(each) is None]
        is_long = block.page in LONG_PAGES
        short = [each for each in wanted if not (is_long or each.startswith(LONG))]
        for commands, marks in (
            (short, [pytest.mark.slow]),
            ([each for each in wanted if each not in short], [pytest.mark.prove]),
        ):
            if commands:
                yield pytest.param(block, commands, id=str(block), marks=marks)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("block", "commands"), list(runs()))
def test_what_is_shown_runs_when_it_is_pasted(
    place: Place, block: Block, commands: list[str]
) -> None:
    lines = [
        place.filled_in(command)
        + next((more for start, more in SHORTER.items() if command.startswith(start)), "")
        for command in commands
    ]
    ended = place.shell("\n".join(["set -x", *lines]))
    assert ended.returncode == 0, f"{block}:\n{ended.stderr[-3000:]}"
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_what_the_text_names_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: a start for each would take longer than all they do."""
    monkeypatch.chdir(place.directory)
    monkeypatch.setenv("HOME", str(place.served.home))
    monkeypatch.setenv("PENSTOCK_ADDRESS", place.served.address)
    failed = {}
    for shown in dict.fromkeys(command for _, command in inline_commands()):
        command = place.filled_in(STAND_INS.get(shown, shown))
        if not command.startswith("penstock ") or shown in INCOMPLETE or reason_not_to_run(shown):
            continue
        with pytest.raises(SystemExit) as ended:
            run(shlex.split(command)[1:])
        told = capsys.readouterr()
        if ended.value.code != CODES.get(shown, 0):
            failed[shown] = f"{ended.value.code}: {told.err[-500:]}"
    assert failed == {}


@pytest.mark.slow
def test_the_python_examples_print_what_readme_says(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = [block for block in blocks() if block.page == "README.md" and block.language != "sh"]
    shown = [
        (block.text, readme[index + 1].text)
        for index, block in enumerate(readme)
        if block.language == "python"
    ]
    assert len(shown) == 2
    for example, printed in shown:
        code = example.replace("127.0.0.1:50051", place.served.address)
        exec(compile(code, "README.md", "exec"), {})
        assert capsys.readouterr().out == printed


EXAMPLES = {
    "generate.py": ["Return the number of items in a container.\nstop, 11 tokens\n"],
    "stream.py": ["Compress data", ": stop\n", "left after 8 tokens\n"],
    "async_stream.py": ["Return the number of items in a container.\nReturn a new list"],
    "batch.py": ['"name": "abs", "text": "Return', '"name": "zip", "text": "Compress'],
    "chat.py": ["> What does zip do?\nCompress data", "prompt tokens were cached)\n"],
    "errors.py": [
        "Return the number of items in a container.\n",
        "mend the request (INVALID_REQUEST): temperature is -1",
        "mend the request (UNKNOWN_MODEL): Model 'nobody' is not served here",
        "too late in phase '",  # which one depends on how busy the machine is
        "come back later (UNREACHABLE): There is no connection to 127.0.0.1:1",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_promises(place: Place, name: str) -> None:
    ended = place.shell(f"python examples/{name}")
    assert (ended.returncode, ended.stderr) == (0, "")
    for text in EXAMPLES[name]:
        assert text in ended.stdout, ended.stdout


def test_every_example_is_shown_and_run() -> None:
    written = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert written == {*EXAMPLES, "stubs.py"}  # which is run with the commands that make stubs
    for name in written:
        assert f"<!-- begin file examples/{name} -->" in PAGES["docs/clients.md"]


def test_no_reason_outlives_its_command() -> None:
    shown = [command for block in blocks() for command in block.commands]
    unused = [start for start in NOT_RUN if not any(each.startswith(start) for each in shown)]
    inline = {command for _, command in inline_commands()}
    assert unused + [command for command in STAND_INS if command not in inline] == []
