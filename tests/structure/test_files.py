"""What no tracked file may hold: the name of a package registry, a path of one machine, a secret;
and what every installation pins."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Written in two parts, so that this file does not hold them either.
REGISTRIES = ["pypi" + ".org", "python" + "hosted.org", "pytorch" + ".org/whl", "ghcr" + ".io"]
REGISTRIES += ["docker" + ".io", "quay" + ".io", "ana" + "conda.org", "npm" + "js.org"]
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:root|work|opt)/[a-z.]|/home/[a-z]+/|/Users/[a-z]+/")
KEY = re.compile("-----BEGIN [A-Z ]*PRIVATE " + "KEY-----")
TEXT = {".py", ".pyi", ".md", ".toml", ".txt", ".yaml", ".yml", ".proto", ".json", ""}
MAX_FILE_BYTES = 10 * 2**20


def read(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def texts(files: list[Path]) -> dict[Path, str]:
    return {path: read(path) for path in files if path.suffix in TEXT}


def test_no_registry_is_named(texts: dict[Path, str]) -> None:
    wrong = [(str(p), host) for p, text in texts.items() for host in REGISTRIES if host in text]
    assert wrong == []


def test_no_path_of_one_machine(texts: dict[Path, str]) -> None:
    wrong = [
        (str(p), found[0]) for p, text in texts.items() if (found := MACHINE_PATHS.search(text))
    ]
    assert wrong == []


def test_no_secret(texts: dict[Path, str]) -> None:
    assert [str(path) for path, text in texts.items() if KEY.search(text)] == []


def test_files_are_small_enough_to_clone(files: list[Path]) -> None:
    big = [str(path) for path in files if (ROOT / path).stat().st_size > MAX_FILE_BYTES]
    assert big == []


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads(read(Path("pyproject.toml")))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cluster"], *extras["dev"]]
    names = {re.split(r"[\[<>=~! ;]", requirement)[0].lower() for requirement in wanted}
    pins = re.findall(r"^([a-z0-9._-]+)==", read(Path("constraints.txt")), re.MULTILINE)
    assert names - {"penstock"} - set(pins) == set()
