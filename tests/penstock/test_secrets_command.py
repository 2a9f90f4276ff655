"""`penstock secrets` draws what the processes of a cluster share, once."""

from pathlib import Path

from cluster.secrets import load_secrets
from tests.penstock.command_line import Penstock


def test_new_secrets_are_their_owners_alone(penstock: Penstock, tmp_path: Path) -> None:
    path, other = tmp_path / "secrets.yaml", tmp_path / "other.yaml"
    assert penstock("secrets", str(path), "--json").json == {"secrets_file": str(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    first = load_secrets(path)
    ended = penstock("secrets", str(other))
    assert (ended.code, ended.out) == (0, "")
    assert first.cluster_token not in ended.err
    assert first.authority is not None
    assert "PRIVATE KEY" not in ended.err
    assert load_secrets(other).cluster_token != first.cluster_token


def test_secrets_are_never_replaced(penstock: Penstock, tmp_path: Path) -> None:
    path = tmp_path / "secrets.yaml"
    penstock("secrets", str(path))
    before = path.read_bytes()
    ended = penstock("secrets", str(path))
    assert ended.code == 2
    assert "exists" in ended.err
    assert "Traceback" not in ended.err
    assert path.read_bytes() == before
    assert penstock("secrets", str(tmp_path / "nowhere" / "secrets.yaml")).code == 2
