"""What a bundle keeps of logs, and that no form of a secret passes."""

import base64
import gzip
import json
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest

from cluster.errors import ConfigError
from cluster.secrets import create_secrets
from deploy.bundle.archive import Leak, write_archive
from deploy.bundle.known_secrets import KnownSecrets, named_secrets
from deploy.bundle.log_text import MAX_LINE, without_content

SECRET = b"a s\xc3\xa9cret that is/long enough?"
AT = "2026-01-01T00:00:00.000Z"
PROMPT = "tell nobody about the merger"

FORMS = {
    "as it is": SECRET,
    "hex": SECRET.hex().encode(),
    "HEX": SECRET.hex().upper().encode(),
    "of a URL": quote(SECRET).encode(),
    **{f"base64 after {i}": base64.b64encode(b"x" * i + SECRET + b"yz") for i in range(4)},
    "base64 of a URL": base64.urlsafe_b64encode(b"?" + SECRET),
    "JSON": json.dumps('"quoted" and \\ long').encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_found_however_it_is_written(form: str) -> None:
    known = KnownSecrets({"the one": SECRET, "the other": b'"quoted" and \\ long'})
    assert known.found_in(b"before" + FORMS[form] + b"after")
    assert known.found_in(b"before and after") is None


def test_all_of_a_secrets_file_is_known(tmp_path: Path) -> None:
    path = tmp_path / "secrets.yaml"
    secrets = create_secrets(path)
    known = KnownSecrets(named_secrets(secrets))
    assert known.too_short == ()
    assert secrets.authority
    der = base64.b64decode("".join(secrets.authority.key.splitlines()[1:-1]))
    for text in (
        secrets.cluster_token.encode(),
        secrets.hash_secret,
        json.dumps(secrets.authority.key).encode(),
        der.hex().encode(),
        base64.b64encode(path.read_bytes()),
        secrets.authority.certificate.encode(),
    ):
        assert known.found_in(b"." + text), text


def test_what_is_too_short_to_be_found_is_told() -> None:
    known = KnownSecrets({"the password": b"abc"})
    assert known.too_short == ("the password",)
    assert known.found_in(b"abc") is None


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (f"{AT} INFO router.fleet worker decode-0 is gone", None),
        (
            f"{AT} ERROR cluster.rpc internal error 7\\nTraceback (most recent call last):\\n"
            f'  File "/a/b.py", line 7, in c\\n    d("{PROMPT}")\\nValueError: {PROMPT}\\n{PROMPT}',
            f"{AT} ERROR cluster.rpc internal error 7\\nTraceback (most recent call last):\\n"
            '  File "/a/b.py", line 7, in c\\nValueError',
        ),
        (PROMPT, f"(of a library or a crash, left out: {len(PROMPT)} letters)"),
        (f'{{"prompt": "{PROMPT}"}}', "(of a library or a crash, left out: 42 letters)"),
        ("Fatal Python error: Segmentation fault", None),
        ('  File "/a/b.py", line 7 in c', None),
        (f"cluster.errors.InternalError: {PROMPT}", "cluster.errors.InternalError"),
        ("error: There is no room for a KV pool.", None),
    ],
)
def test_a_line_is_kept_without_what_it_may_have_of_a_request(line: str, kept: str | None) -> None:
    assert without_content(line) == (line if kept is None else kept)


def test_a_record_of_json_keeps_its_fields_and_of_an_exception_the_places() -> None:
    record = {
        "time": AT,
        "level": "error",
        "process": "router",
        "logger": "cluster.rpc",
        "message": "internal error 7",
        "request_id": "r-1",
    }
    assert json.loads(without_content(json.dumps(record))) == record
    trace = f'Traceback (most recent call last):\n  File "/a.py", line 7, in c\nKeyError: {PROMPT}'
    kept = json.loads(without_content(json.dumps({**record, "exception": trace})))
    assert kept == {**record, "exception": trace.removesuffix(f": {PROMPT}")}
    assert len(without_content(f"{AT} INFO x {'y' * 10**6}")) == MAX_LINE


def test_it_is_written_once_for_its_owner_and_never_with_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "trouble.tar.gz"
    known = KnownSecrets({"the token": b"0123456789"})
    leaking = {"a.json": b"{}", "b.json": b"x0123456789x"}
    assert write_archive(path, leaking, known) == Leak("the token", "b.json")
    assert write_archive(path, {"0123456789": b""}, known)
    assert not path.exists()
    assert write_archive(path, {"a.json": b"{}"}, known) is None
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["trouble/a.json"]
    assert b"0123456789" not in gzip.decompress(path.read_bytes())
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        write_archive(path, {}, known)
