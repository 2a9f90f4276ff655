"""What README and docs show, run as it stands beside a cluster that serves the shipped model; only
made small, and with files and ids that exist."""

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import Client
from penstock.cli.app import run
from simulator.trace import load_trace
from tests.deploy.test_serve import Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRACE = ROOT / "simulator" / "conversations.jsonl.gz"
POLICY = ROOT / "deploy" / "policies" / "default.yaml"
EPP = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: queue-scorer}]
schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer}]}]
"""
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (.*)$", re.MULTILINE)
# They run until Ctrl-C, or for minutes: `test_serve` and `test_bench_command` have them.
NOT_RUN = {"serve", "demo", "--start"}
SMALL = {
    "simulate": ["--limit", "20"],
    "replay": ["--limit", "20"],
    "bench": ["--requests", "4", "--rate", "50", "--unloaded", "0"],
}


def documented() -> Iterator[str]:
    """Lines of code blocks that begin with the command, with those that continue them."""
    for page in PAGES:
        text = page.read_text()
        code = [block for _, block in BLOCKS.findall(text)]
        code.append("\n".join(INDENTED.findall(BLOCKS.sub("", text))))
        lines = iter("\n".join(code).splitlines())
        for line in lines:
            if re.match(r"(\.venv/bin/)?penstock [a-z]", line):
                while line.count("'") % 2:
                    line += " " + next(lines).strip()
                yield line


COMMANDS = [
    line for line in dict.fromkeys(documented()) if not NOT_RUN.intersection(line.split()[:3])
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("home")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def request_id(served: Served) -> str:
    with Client(served.address) as client:
        return client.generate("Hi", max_tokens=1).result().accepted.request_id


@pytest.fixture
def folder(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: in a copy of what they name."""
    monkeypatch.setenv("HOME", str(served.home))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    for name in ("mine.yaml", "policy.yaml"):
        (tmp_path / name).write_text(POLICY.read_text())
    for name in ("traffic.jsonl.gz", "requests.jsonl.gz"):
        (tmp_path / name).symlink_to(TRACE)
    (tmp_path / "epp.yaml").write_text(EPP)
    (tmp_path / "F").symlink_to(Path(served.ready["run_dir"]) / "secrets.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_some() -> None:
    assert len(COMMANDS) > 12
    assert load_trace(TRACE, limit=1).requests


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_does_its_work(
    line: str, served: Served, request_id: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for placeholder, found in (
        ("REQUEST_ID", request_id),
        ("127.0.0.1:7000", served.address),
        ("PATH", "traffic.jsonl.gz"),
    ):
        line = line.replace(placeholder, found)
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    words = [found for word in words for found in expanded(word, folder)]
    name = words[1] if words[0] == "policy" else words[0]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        run([*words, *SMALL.get(name, [])])
    assert ended.value.code in (0, None)


def expanded(word: str, folder: Path) -> list[str]:
    if "*" not in word:
        return [word]
    return [str(path.relative_to(folder)) for path in sorted(folder.glob(word))]


def test_the_python_examples_print_what_readme_says(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = BLOCKS.findall((ROOT / "README.md").read_text())
    shown = [
        (text, blocks[index + 1][1])
        for index, (language, text) in enumerate(blocks)
        if language == "python"
    ]
    assert len(shown) == 2
    for example, printed in shown:
        code = example.replace("127.0.0.1:50051", served.address)
        exec(compile(code, "README.md", "exec"), {})
        assert capsys.readouterr().out == printed
