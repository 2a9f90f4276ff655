"""The secrets file: whose it is, what it holds, and that it is never shown."""

import os
from pathlib import Path

import pytest

from cluster.authority import issue
from cluster.errors import ConfigError
from cluster.secrets import create_secrets, load_secrets


def test_what_was_created_is_what_is_loaded_and_only_its_owner_can_read_it(tmp_path: Path):
    path = tmp_path / "secrets.yaml"
    old_mask = os.umask(0)
    try:
        created = create_secrets(path)
    finally:
        os.umask(old_mask)
    assert load_secrets(path) == created
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(created.cluster_token) >= 32
    assert len(created.hash_secret) == 32


def test_two_clusters_share_nothing(tmp_path: Path):
    one, two = create_secrets(tmp_path / "one"), create_secrets(tmp_path / "two")
    assert one.cluster_token != two.cluster_token
    assert one.hash_secret != two.hash_secret


def test_neither_secret_is_in_the_repr(tmp_path: Path):
    created = create_secrets(tmp_path / "secrets.yaml")
    for shown in (repr(created), str(created), f"{created}"):
        assert created.cluster_token not in shown
        assert created.hash_secret.hex() not in shown
        assert repr(created.hash_secret) not in shown


def test_an_authority_is_drawn_unless_nothing_leaves_the_machine(tmp_path: Path):
    created = create_secrets(tmp_path / "with")
    assert created.authority is not None
    assert created.authority.key not in repr(created)
    assert issue(created.authority).authority.decode() == created.authority.certificate
    assert create_secrets(tmp_path / "without", with_authority=False).authority is None


def test_a_file_from_before_there_was_an_authority_still_loads(tmp_path: Path):
    path = tmp_path / "secrets.yaml"
    path.touch(0o600)
    path.write_text("{cluster_token: abcdefghijklmnop, hash_secret: '00112233445566778899'}")
    assert load_secrets(path).authority is None


@pytest.mark.parametrize(
    "authority",
    [
        "abcdefghijklmnop",
        "{certificate: abcdefghijklmnop}",
        "{certificate: abcdefghijklmnop, key: abcdefghijklmnop}",
        "{certificate: '-----BEGIN ', key: '-----BEGIN abcdefghijklmnop', more: 1}",
        f"{{certificate: '-----BEGIN ', key: '-----BEGIN {'abcdefghijklmnop' * 1025}'}}",
    ],
)
def test_an_authority_that_is_not_whole_is_refused_without_quoting_it(
    tmp_path: Path, authority: str
):
    path = tmp_path / "secrets.yaml"
    path.touch(0o600)
    others = "cluster_token: the-token-of-ours, hash_secret: '00112233445566778899'"
    path.write_text(f"{{{others}, authority: {authority}}}")
    with pytest.raises(ConfigError, match=r"authority in .*secrets\.yaml must have") as raised:
        load_secrets(path)
    assert "abcdefghijklmnop" not in str(raised.value)


def test_an_existing_file_is_never_replaced(tmp_path: Path):
    path = tmp_path / "secrets.yaml"
    created = create_secrets(path)
    with pytest.raises(ConfigError, match="exists"):
        create_secrets(path)
    assert load_secrets(path) == created


def test_a_symbolic_link_is_not_written_through(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        create_secrets(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_read_or_change_is_refused_with_the_remedy(
    tmp_path: Path, mode: int
):
    path = tmp_path / "secrets.yaml"
    create_secrets(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}.*chmod 600"):
        load_secrets(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "cluster_token: abcdefghijklmnop",
        "{cluster_token: abcdefghijklmnop, hash_secret: '00112233445566778899', more: 1}",
        "{cluster_token: short, hash_secret: '00112233445566778899'}",
        "{cluster_token: 12345678901234567890, hash_secret: '00112233445566778899'}",
        '{cluster_token: "abcdefghijklmnop\\n", hash_secret: "00112233445566778899"}',
        "{cluster_token: abcdefghijklmnop, hash_secret: 'not hexadecimal at all'}",
        "{cluster_token: abcdefghijklmnop, hash_secret: 11112222333344445555}",
        "secret: 'unclosed",
        "\xff\x00",
    ],
)
def test_a_file_that_is_not_whole_is_refused_without_quoting_it(tmp_path: Path, text: str):
    path = tmp_path / "secrets.yaml"
    path.touch(0o600)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"secrets\.yaml") as raised:
        load_secrets(path)
    assert "abcdefghijklmnop" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml.*No such file"):
        load_secrets(tmp_path / "nowhere.yaml")


def test_a_directory_is_no_secrets_file(tmp_path: Path):
    with pytest.raises(ConfigError):
        load_secrets(tmp_path)
