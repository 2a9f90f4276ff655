"""What README shows works when it is pasted; its commands are run by tests/docs."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from penstock.cli.exit_codes import ExitCode
from penstock.v1 import inference_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_python_examples_run(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What they print of the shipped model, `tests/docs` compares."""
    for example in (text for language, text in BLOCKS if language == "python"):
        exec(compile(example.replace("127.0.0.1:50051", server.address), "README.md", "exec"), {})
    streamed, whole, cached, *others = capsys.readouterr().out.splitlines()
    assert (streamed, whole) == ("Hello.", "Hello. (stop)")
    assert cached == "2 of 3 prompt tokens were cached"
    assert others == ["Hello.", "Hello."]


def test_the_exit_codes_are_told() -> None:
    told = re.search(r"Exit codes are stable: (.*?);", README)
    assert told
    assert [int(code) for code in re.findall(r"(\d+) ", told[1])] == list(ExitCode)


def test_the_grpcurl_example_is_a_request() -> None:
    [example] = [text for _, text in BLOCKS if text.startswith("grpcurl")]
    words = shlex.split(example.replace("\\\n", " "))
    request = json_format.Parse(words[words.index("-d") + 1], pb.GenerateRequest())
    assert request.chat.messages[0].content == "What does len do?"
    service, method = words[-1].split("/")
    assert method in pb.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods_by_name


def test_what_it_points_to_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"`([\w./]+\.\w+)`", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
