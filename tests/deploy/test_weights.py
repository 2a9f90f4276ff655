"""Weights come to a machine once, whole and as they were wanted, or not at all."""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import ConfigError, WeightsBrokenOff, WeightsError
from deploy.cluster_file.kind import CLUSTER
from deploy.weights import pull as pulling
from deploy.weights import source
from deploy.weights.manifest import MAX_FILES, NAME, Manifest, describes, digest_of, manifest_of
from deploy.weights.origin import Weights, kept_in
from deploy.weights.progress import PullProgress
from deploy.weights.pull import pull
from deploy.weights.pulled import pulled
from tests.deploy.broken_clusters import spec
from tests.deploy.polling import until
from tests.deploy.weights_server import (
    MODEL,
    MODEL_BYTES,
    Sent,
    WeightsServer,
    make_weights,
    serving_weights,
)

DIGEST = "sha256:" + "ab" * 32
PULLER = (sys.executable, "-m", "deploy.weights.puller")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WeightsServer]:
    with serving_weights(make_weights(tmp_path / "source")) as served:
        yield served


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library tries nothing again by itself."""
    monkeypatch.setattr(source, "_RETRIES", {"max_retries": 0})


@pytest.fixture
def impatient(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do we."""
    monkeypatch.setattr(pulling, "PAUSES_S", ())


def said_of(pull_into: Path, weights: Weights) -> list[str]:
    said: list[str] = []
    pull(weights, pull_into, say=said.append)
    return said


def is_whole(directory: Path, source: Path) -> bool:
    names = sorted(path.name for path in source.iterdir())
    return sorted(path.name for path in directory.iterdir()) == names and all(
        (directory / name).read_bytes() == (source / name).read_bytes() for name in names
    )


def start(weights: Weights, directory: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*PULLER, weights.source, weights.digest, str(directory)], stdout=subprocess.PIPE
    )


@pytest.mark.slow
def test_weights_are_pulled_once_for_two_workers_of_a_machine_and_go_on_where_they_broke_off(
    server: WeightsServer, tmp_path: Path
) -> None:
    """And those of a wrong digest are refused."""
    weights, directory = server.weights, tmp_path / "here" / "model"
    partial = directory.with_name("model.partial") / f"{MODEL}.partial"
    server.hold_at = 3 << 20
    with start(weights, directory) as first:
        until(lambda: partial.exists() and partial.stat().st_size > 0, "a part of it is here")
        os.kill(first.pid, signal.SIGKILL)
    assert not directory.exists()
    num_here = partial.stat().st_size
    assert 0 < num_here <= 3 << 20
    server.released.set()
    server.sent.clear()

    both = [start(weights, directory) for _ in range(2)]
    told = [process.communicate(timeout=60)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert is_whole(directory, server.folder)
    assert [each for each in server.sent if each.name == MODEL] == [
        Sent(MODEL, num_here, MODEL_BYTES)
    ]
    assert sum("Pulling weights from" in text for text in told) == 1
    assert not partial.parent.exists()

    found, wanted = weights.digest, DIGEST
    with start(Weights(source=server.url, digest=wanted), tmp_path / "other") as refused:
        assert refused.wait(60) == 2
        assert refused.stdout
        text = refused.stdout.read().decode()
    assert found in text
    assert wanted in text
    assert not list(tmp_path.glob("other*/*"))


@pytest.mark.usefixtures("alone")
def test_what_breaks_off_goes_on_and_is_told(server: WeightsServer, tmp_path: Path) -> None:
    server.breaks[MODEL] = 2
    said = said_of(tmp_path / "model", server.weights)
    assert is_whole(tmp_path / "model", server.folder)
    starts = [each.start for each in server.sent if each.name == MODEL]
    assert starts == sorted(starts)
    assert len(starts) == 3
    assert starts[-1] > 0
    assert said[0] == f"Pulling weights from {server.url}: 0.0 of 5.2 MB, 0 MB/s"
    assert "5.2 of 5.2 MB" in said[-2]
    assert said[-1] == f"The weights are in {tmp_path / 'model'}."


@pytest.mark.usefixtures("impatient")
def test_a_source_that_does_not_come_back_ends_the_pull_and_the_next_goes_on(
    server: WeightsServer, tmp_path: Path
) -> None:
    server.breaks[MODEL] = 1
    with pytest.raises(WeightsBrokenOff, match=rf"{MODEL} does not come"):
        said_of(tmp_path / "model", server.weights)
    assert not (tmp_path / "model").exists()
    server.sent.clear()
    said_of(tmp_path / "model", server.weights)
    assert is_whole(tmp_path / "model", server.folder)
    assert {each.name for each in server.sent} == {NAME, MODEL}
    assert 0 < server.num_sent(MODEL) < MODEL_BYTES


def test_two_at_once_pull_once(server: WeightsServer, tmp_path: Path) -> None:
    said: list[list[str]] = [[], []]

    def one(index: int) -> None:
        pull(server.weights, tmp_path / "model", say=said[index].append)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_whole(tmp_path / "model", server.folder)
    assert server.num_sent(MODEL) == MODEL_BYTES
    server.sent.clear()
    assert said_of(tmp_path / "model", server.weights) == []
    assert server.sent == []


def test_a_file_that_is_not_the_one_that_was_listed_is_taken_away(
    server: WeightsServer, tmp_path: Path
) -> None:
    weights = server.weights
    found = b"something else"
    (server.folder / "config.json").write_bytes(found)
    with pytest.raises(WeightsError) as caught:
        said_of(tmp_path / "model", weights)
    message = caught.value.message
    assert f"config.json has the digest sha256:{hashlib.sha256(found).hexdigest()}" in message
    assert f"says sha256:{hashlib.sha256(b'{}').hexdigest()}" in message
    assert not (tmp_path / "model").exists()
    assert not list((tmp_path / "model.partial").glob("config.json*"))
    (server.folder / "config.json").write_bytes(b"{}")
    said_of(tmp_path / "model", weights)
    assert is_whole(tmp_path / "model", server.folder)


@pytest.mark.usefixtures("impatient")
def test_what_is_left_of_other_weights_is_none_of_these(
    server: WeightsServer, tmp_path: Path
) -> None:
    server.breaks[MODEL] = 1
    with pytest.raises(WeightsBrokenOff):
        said_of(tmp_path / "model", server.weights)
    (server.folder / MODEL).write_bytes(b"another model" * 1000)
    (server.folder / NAME).write_bytes(manifest_of(server.folder).text)
    said_of(tmp_path / "model", server.weights)
    assert is_whole(tmp_path / "model", server.folder)


def test_a_directory_that_holds_something_else_is_left_alone(
    server: WeightsServer, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "mine.txt").write_text("mine")
    with pytest.raises(WeightsError, match=r"holds no SHA256SUMS, but something else: name anoth"):
        said_of(directory, server.weights)
    (directory / NAME).write_text(f"{'0' * 64}  mine.txt\n")
    with pytest.raises(WeightsError, match=r"has the digest sha256:\w+, and wanted is sha256:"):
        said_of(directory, server.weights)
    assert (directory / "mine.txt").read_text() == "mine"
    assert server.sent == []


def test_what_is_nobodys_pull_is_left_alone(server: WeightsServer, tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "mine.txt").write_text("mine")
    with pytest.raises(WeightsError, match=r"model\.partial holds no SHA256SUMS, so it is no pull"):
        said_of(tmp_path / "model", server.weights)
    assert (tmp_path / "model.partial" / "mine.txt").read_text() == "mine"


def test_a_file_that_is_lost_later_is_missed(server: WeightsServer, tmp_path: Path) -> None:
    said_of(tmp_path / "model", server.weights)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"lacks config\.json: take it away"):
        said_of(tmp_path / "model", server.weights)


def test_a_disk_that_is_too_small_is_told_before_a_byte_comes(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=2_000_000))
    with pytest.raises(WeightsError, match=r"take 5 MB more in .*, and 2 MB are free: make room"):
        said_of(tmp_path / "model", server.weights)
    assert {each.name for each in server.sent} == {NAME}


def test_what_only_describes_them_has_no_weights(server: WeightsServer, tmp_path: Path) -> None:
    pull(server.weights, tmp_path / "model", say=print, is_wanted=describes)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {NAME, "config.json", "tokenizer.json"}
    assert server.num_sent(MODEL) == 0


def test_a_source_without_a_list_or_without_parts_is_refused(
    server: WeightsServer, tmp_path: Path
) -> None:
    weights = server.weights
    server.has_parts = False
    with pytest.raises(WeightsError, match=r"is not served in parts, .*answers Range"):
        said_of(tmp_path / "model", weights)
    server.has_parts = True
    (server.folder / NAME).unlink()
    with pytest.raises(WeightsError, match=r"There is no .*/SHA256SUMS\. A source of weights has"):
        said_of(tmp_path / "model", weights)


def test_an_object_store_and_a_path_are_sources_as_well(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_REGION": "here",
    }.items():
        monkeypatch.setenv(name, value)
    digest = server.weights.digest
    server.breaks[MODEL] = 1
    said = said_of(tmp_path / "s3", Weights(source="s3://models/tiny", digest=digest))
    assert is_whole(tmp_path / "s3", server.folder)
    assert "hunter2" not in "".join(said)
    server.sent.clear()
    said_of(tmp_path / "path", Weights(source=str(server.folder), digest=digest))
    assert is_whole(tmp_path / "path", server.folder)
    assert server.sent == []


@pytest.mark.slow
def test_a_pull_that_is_given_up_leaves_no_process(server: WeightsServer, tmp_path: Path) -> None:
    server.hold_at = 1

    async def give_up() -> None:
        begun = asyncio.Event()
        there = str(tmp_path / "model")
        pull_ = asyncio.create_task(
            pulled(server.weights, there, say=lambda line: begun.set(), log=tmp_path / "log")
        )
        await begun.wait()
        pull_.cancel()
        await asyncio.wait([pull_])
        assert pull_.cancelled()

    asyncio.run(give_up())
    assert "Pulling weights from" in (tmp_path / "log").read_text()
    server.released.set()
    again = asyncio.run(pulled(server.weights, str(tmp_path / "model"), say=print))
    assert is_whole(again, server.folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"names 0 files"),
        (f"{'a' * 64}  ../config.json\n", r"line 1, names '\.\./config\.json': a file lies in"),
        (f"{'a' * 64}  /etc/passwd\n", r"line 1, names '/etc/passwd'"),
        (f"{'a' * 64}  a/b/c\n", r"or in one folder of it"),
        (f"{'a' * 64}  .hidden\n", r"names '\.hidden'"),
        (f"{'a' * 64}  a\\nb\n", r"names 'a\\nb'"),
        (f"{'a' * 64}  {'n' * 201}\n", r"at most 200 letters"),
        (f"{'a' * 64}  a.partial\n", r"does not end with \.partial"),
        (f"{'a' * 64}  {NAME}\n", r"names SHA256SUMS itself"),
        (f"{'a' * 64}  a\n{'b' * 64}  a\n", r"line 2, names 'a' once more"),
        (f"{'a' * 64}  a\n{'b' * 64}  a/b\n", r"'a' as a file and as a folder"),
        (f"{'a' * 63}  a\n", r"line 1, is not as sha256sum writes it"),
        (f"SHA256 (a) = {'a' * 64}\n", r"is not as sha256sum writes it"),
        ("".join(f"{'a' * 64}  f{i}\n" for i in range(MAX_FILES + 1)), r"names 4097 files"),
        ("#" * (1 << 20) + "#", r"more than 1048576 bytes"),
    ],
)
def test_a_list_that_could_do_harm_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(WeightsError, match=sentence):
        Manifest.parse(text.encode(), "it")


def test_a_list_is_as_sha256sum_writes_it(tmp_path: Path) -> None:
    folder = make_weights(tmp_path / "source")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{}")
    (folder / "notes.txt").write_text("none of it")
    manifest = manifest_of(folder)
    (folder / NAME).write_bytes(manifest.text)
    subprocess.run(["sha256sum", "--check", "--quiet", NAME], cwd=folder, check=True)
    assert set(manifest.files) == {
        "additional_chat_templates/tools.jinja",
        "config.json",
        MODEL,
        "tokenizer.json",
    }
    assert manifest.digest == digest_of((folder / NAME).read_bytes())
    binary = manifest.text.replace(b"  ", b" *./")
    assert Manifest.parse(binary, "it").files == manifest.files


@pytest.mark.parametrize(
    "source",
    [
        "models/tiny",
        "ftp://models/tiny",
        "https://",
        "s3:///tiny",
        "https://me:hunter2@models/tiny",
        "https://models/tiny?signature=hunter2",
        "https://models/tiny#hunter2",
        "https://models/a b",
        "https://[models/tiny",
        "s3://" + "m" * 2048,
    ],
)
def test_a_source_that_is_none_or_tells_a_secret_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match=r"'spec\.weights.*'source'") as caught:
        CLUSTER.parse(spec(f"{{weights: {{source: '{source}', digest: '{DIGEST}'}}}}"))
    assert "hunter2" not in caught.value.message


def test_a_digest_is_needed_and_names_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'spec\.weights\.digest' is missing"):
        CLUSTER.parse(spec("{weights: {source: /a}}"))
    with pytest.raises(ConfigError, match=r"'digest' is 'sha256:1': give sha256: and 64 hexadec"):
        CLUSTER.parse(spec("{weights: {source: /a, digest: 'sha256:1'}}"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    weights = Weights(source="s3://models/my%20model/", digest=DIGEST)
    assert weights.name == "my model"
    assert kept_in(weights) == Path("/caches/penstock/weights") / ("ab" * 32)
    assert kept_in(weights, "/here") == Path("/here")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    with pytest.raises(WeightsError, match="give their directory as 'checkpoint'"):
        kept_in(weights)


def test_progress_tells_the_rate_of_late_and_what_is_left() -> None:
    now_s = 0.0
    progress = PullProgress(lambda: now_s)
    progress.begin(0, 10_000_000_000)
    assert progress.line() == "0.0 of 10,000.0 MB, 0 MB/s"
    now_s = 10.0
    progress.add(1_000_000_000)
    assert progress.line() == "1,000.0 of 10,000.0 MB, 100 MB/s, 1 min 30 s left"
    lines = []
    for _ in range(5):
        now_s += 10.0
        lines.append(progress.line())
    assert lines[-1] == "1,000.0 of 10,000.0 MB, 0 MB/s"
