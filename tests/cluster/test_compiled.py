"""What is compiled here is kept for the next process, and is loaded only if it is our own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import compiled
from cluster.compiled import CompileError

PROGRAM = '#include "two.h"\nextern "C" __attribute__((visibility("default"))) int {}(void) {}'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "two.h").write_text("#ifndef TWO\n#define TWO 2\n#endif\n")
    path = folder / "add.cpp"
    path.write_text(PROGRAM.format("two", "{ return TWO; }"))
    return path


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was compiled, not only loaded."""
    found: list[Path] = []
    compile_ = compiled._compile

    def noted(*args: Any) -> None:
        found.append(args[-1])
        compile_(*args)

    monkeypatch.setattr(compiled, "_compile", noted)
    return found


def two(source: Path, folder: Path | None, *defines: str) -> int:
    found: int = compiled.compiled(source, defines, folder=folder).two()
    return found


def test_a_source_is_compiled_once_for_each_of_its_states(
    source: Path, tmp_path: Path, compiles: list[Path]
) -> None:
    kept = tmp_path / "kept"
    assert [two(source, kept) for _ in range(3)] == [2, 2, 2]
    assert len(compiles) == 1
    assert two(source, kept, "TWO=3") == 3
    (source.parent / "two.h").write_text("#define TWO 4\n")
    assert two(source, kept) == 4
    assert len(set(compiles)) == 3
    assert kept.stat().st_mode & 0o077 == 0


def test_another_processor_or_compiler_has_its_own(
    source: Path, tmp_path: Path, compiles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    two(source, tmp_path / "kept")
    monkeypatch.setattr("cluster.host.instructions", lambda: "another")
    two(source, tmp_path / "kept")
    monkeypatch.setattr(compiled, "_native", lambda: "-O1")
    two(source, tmp_path / "kept")
    assert len(set(compiles)) == 3


def test_what_is_cut_short_is_compiled_again(
    source: Path, tmp_path: Path, compiles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To load it would end the process."""
    with monkeypatch.context() as patched:
        patched.setattr("ctypes.CDLL", lambda path: None)
        with pytest.raises(AttributeError):
            two(source, tmp_path)
    [path] = compiles
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    assert two(source, tmp_path) == 2
    assert len(compiles) == 2


def test_what_others_could_have_written_is_not_loaded(
    source: Path, tmp_path: Path, compiles: list[Path]
) -> None:
    kept = tmp_path / "kept"
    two(source, kept)
    compiles[0].chmod(0o777)
    assert two(source, kept) == 2
    assert len(compiles) == 2
    kept.chmod(0o777)
    assert two(source, kept) == 2
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert two(source, link) == 2
    assert [path.parent in (kept, link) for path in compiles] == [True, True, False, False]


def test_without_a_folder_nothing_is_left(source: Path, compiles: list[Path]) -> None:
    assert two(source, None) == 2
    assert not compiles[0].parent.exists()


def test_a_folder_that_cannot_be_made_is_done_without(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert two(source, tmp_path / "file" / "kept") == 2


def test_only_so_many_are_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MAX_KEPT", 2)
    for number in range(4):
        two(source, tmp_path, f"TWO={number}")
    assert len(list(tmp_path.glob("*.so"))) == 2


def test_why_there_is_none_is_said(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_text("not C++")
    with pytest.raises(CompileError, match="fails"):
        two(source, tmp_path)
    assert list(tmp_path.glob("add*")) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match=r"no C\+\+ compiler on the path"):
        two(source, tmp_path)


@pytest.mark.slow
def test_processes_that_start_together_compile_once(source: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    code = (
        "import sys; from pathlib import Path; from cluster import compiled\n"
        "done = []; real = compiled._compile\n"
        "compiled._compile = lambda *a: (done.append(a), real(*a))\n"
        "compiled.compiled(Path(sys.argv[1]), folder=Path(sys.argv[2]))\n"
        "print(len(done))"
    )
    command = [sys.executable, "-c", code, str(source), str(kept)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [child.communicate()[0].strip() for child in children]
    assert sorted(told) == ["0", "0", "1"]
