"""`penstock stop` and what `serve` says of itself: which cluster, whether it has ended, who is let
in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.cli.cluster_options import ready_text
from penstock.cli.notes import LocalNote, noted, this_machine
from router.tls.certificate import TlsFiles
from tests.certificates import SigningCa, write_pair
from tests.penstock.command_line import Penstock

DRAINS_FOR_EVER = """
import os, signal
from penstock.cli.notes import LocalNote, noted, this_machine
note = LocalNote(address="127.0.0.1:1", run_dir="/r/one", pid=os.getpid(), machine=this_machine())
told = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, told)  # none is lost between two waits
with noted(note):
    print(flush=True)
    while signal.sigwait(told) != signal.SIGINT:
        pass
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("XDG_RUNTIME_DIR", "PENSTOCK_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def serving() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", DRAINS_FOR_EVER], stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        yield one
        one.kill()


def test_it_waits_as_long_as_it_is_told_and_then_may_be_urgent(
    penstock: Penstock, serving: subprocess.Popen[bytes]
) -> None:
    ended = penstock("stop", "--timeout", "0.1")
    assert ended.code == 6
    assert "127.0.0.1:1 has not ended after 0.1 s" in ended.err
    assert serving.poll() is None
    ended = penstock("stop", "--now", "--json")
    assert ended.json == {"stopped": "127.0.0.1:1", "pid": serving.pid}
    assert serving.wait(10) == 0
    ended = penstock("stop")
    assert ended.code == 4
    assert "No cluster is known to run" in ended.err


def cluster_at(
    address: str, listens: str, keys_file: Path | None = None, tls: TlsFiles | None = None
) -> Any:
    router = SimpleNamespace(address=listens)
    return SimpleNamespace(
        http="127.0.0.1:8",
        address=address,
        listens=listens,
        log_dir=Path("/logs"),
        run_dir=Path("/r/one"),
        internal=address,
        plan=SimpleNamespace(model_name="m", advertise="", keys_file=keys_file, tls=tls),
        children={"router": router, "decode-0": SimpleNamespace(address="127.0.0.1:9")},
    )


def note_at(address: str, run_dir: str) -> LocalNote:
    return LocalNote(address=address, run_dir=run_dir, pid=os.getpid(), machine=this_machine())


def test_what_can_be_pasted_finds_this_cluster_also_beside_another() -> None:
    cluster = cluster_at("127.0.0.1:7", "127.0.0.1:7")
    assert "status -a 127.0.0.1:7" in ready_text(cluster)  # no note could be left
    assert "curl http://127.0.0.1:8/v1/chat/completions" in ready_text(cluster)
    with noted(note_at("127.0.0.1:7", "/r/one")):
        assert "-a" not in ready_text(cluster)
        with noted(note_at("127.0.0.1:8", "/r/two")):
            assert "status -a 127.0.0.1:7" in ready_text(cluster)


@pytest.mark.parametrize(
    ("on_path", "called", "said"),
    [
        ("/bin/penstock", "/bin/penstock", "penstock"),
        (None, "/venv/bin/penstock", "/venv/bin/penstock"),
        (None, "/src/penstock/__main__.py", f"{sys.executable} -m penstock"),
    ],
)
def test_what_can_be_pasted_is_a_command_of_that_shell(
    on_path: str | None, called: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: on_path)
    monkeypatch.setattr("sys.argv", [called])
    assert f"\n  {said} status -a 127" in ready_text(cluster_at("127.0.0.1:7", "127.0.0.1:7"))


@pytest.mark.parametrize(
    ("listens", "said"),
    [
        ("127.0.0.1:7", "for this machine only"),
        ("localhost:7", "for this machine only"),
        ("0.0.0.0:7", "INSECURE"),
        ("[::]:7", "INSECURE"),
        ("192.0.2.77:7", "INSECURE"),
    ],
)
def test_the_banner_tells_who_is_let_in(listens: str, said: str) -> None:
    text = ready_text(cluster_at("127.0.0.1:7", listens))
    assert said in text
    assert ("INSECURE" in text) == (said == "INSECURE")
    assert "nobody is asked for an API key: all callers are the tenant 'default'" in text


def test_the_banner_tells_that_callers_are_asked_for_keys() -> None:
    here = cluster_at("127.0.0.1:7", "127.0.0.1:7", keys_file=Path("/keys.json"))
    text = ready_text(here)
    assert "no TLS and callers show an API key: for this machine only" in text
    assert 'authorization: Bearer $PENSTOCK_API_KEY"' in text
    assert "In another terminal, with PENSTOCK_API_KEY set:" in text
    others = ready_text(cluster_at("127.0.0.1:7", "0.0.0.0:7", keys_file=Path("/keys.json")))
    assert "INSECURE: no TLS: API keys and prompts can be read on their way to 0.0.0.0:7" in others


@pytest.mark.parametrize(
    ("hosts", "where"),
    [
        (("127.0.0.1",), " https://127.0.0.1:8/v1/chat"),
        (("*.example.com",), "--resolve any.example.com:8:127.0.0.1 https://any.example.com:8/v1"),
    ],
)
def test_the_banner_tells_how_to_come_in_under_tls(
    hosts: tuple[str, ...], where: str, tmp_path: Path
) -> None:
    ca = SigningCa()
    files = write_pair(tmp_path, ca.pair(*hosts))
    text = ready_text(cluster_at("127.0.0.1:7", "127.0.0.1:7", tls=files))
    assert "TLS and no authentication: for this machine only" in text
    assert "https://127.0.0.1:8/v1  as OpenAI's clients" in text
    assert f"curl --cacert {files.certificate}" in text
    assert where in text
    keyed = cluster_at("127.0.0.1:7", "0.0.0.0:7", keys_file=Path("/keys.json"), tls=files)
    assert "TLS and callers show an API key: 0.0.0.0:7 is open to other m" in ready_text(keyed)
    assert "INSECURE" not in ready_text(keyed)
    unasked = ready_text(cluster_at("127.0.0.1:7", "0.0.0.0:7", tls=files))
    assert "INSECURE: no authentication, and 0.0.0.0:7 is open to other machines" in unasked
    asking = write_pair(tmp_path, ca.pair(*hosts), ca.certificate)
    text = ready_text(cluster_at("127.0.0.1:7", "0.0.0.0:7", tls=asking))
    assert "TLS and a certificate of their own: 0.0.0.0:7 is open to other machines" in text
    assert "--cert CLIENT.pem --key CLIENT.key" in text
    assert "chat -a 127.0.0.1:7 --cert-file CLIENT.pem --key-file CLIENT.key\n" in text
