"""The files of a certificate: what is believed of them, and that what fits is followed."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cluster.errors import ConfigError
from router.config import RouterConfig
from router.tls.certificate import MAX_BYTES, TlsFiles, load_certificate
from router.tls.follow import DoorCertificate
from tests.certificates import Pair, SigningCa, put, write_pair

CA = SigningCa()
OTHER = CA.pair()
Spoil = Callable[[TlsFiles, Pair], object]

BROKEN: dict[str, tuple[Spoil, str]] = {
    "no certificate": (lambda f, _: f.certificate.unlink(), "'tls.certificate' .* cannot be read"),
    "no key": (lambda f, _: f.key.unlink(), "'tls.key' .* cannot be read"),
    "nothing in it": (lambda f, _: f.certificate.write_bytes(b""), "no certificate as PEM"),
    "half of it": (
        lambda f, pair: f.certificate.write_bytes(pair.certificate[:200]),
        "no certificate as PEM",
    ),
    "another's key": (lambda f, _: f.key.write_bytes(OTHER.key), "is not the key of"),
    "no PEM as key": (lambda f, _: f.key.write_bytes(b"x" * 99), "no key as PEM"),
    "a password": (
        lambda f, _: write_pair(f.key.parent, CA.pair(password=b"p")),
        "without a password",
    ),
    "too much": (
        lambda f, _: f.key.write_bytes(b"-" * (MAX_BYTES + 1)),
        f"more than {MAX_BYTES} bytes",
    ),
    "no CA": (lambda f, _: f.client_ca and f.client_ca.write_bytes(b"x"), "client_ca"),
    "a key of a rare kind": (
        lambda f, _: write_pair(f.key.parent, CA.pair(key=ed25519.Ed25519PrivateKey.generate())),
        "an RSA key, or",
    ),
}


def followed(folder: Path) -> tuple[TlsFiles, Pair, DoorCertificate]:
    pair = CA.pair()
    files = write_pair(folder, pair, CA.certificate)
    return files, pair, DoorCertificate(files)


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    spoil, told = BROKEN[case]
    files, pair, _ = followed(tmp_path)
    spoil(files, pair)
    with pytest.raises(ConfigError, match=told) as caught:
        load_certificate(files)
    assert pair.key.decode()[30:60] not in caught.value.message


@pytest.mark.parametrize("case", BROKEN)
async def test_what_is_broken_changes_nothing_until_it_is_mended(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, _ = BROKEN[case]
    files, pair, shown = followed(tmp_path)
    spoil(files, pair)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            await shown.look()
    assert shown.served.texts.certificate == pair.certificate
    assert shown.error
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 1
    assert "the certificate in force stays" in warned[0]
    mended = CA.pair()
    write_pair(tmp_path, mended, CA.certificate)
    for _ in range(2):
        await shown.look()
    assert (shown.served.texts.certificate, shown.error) == (mended.certificate, "")


async def test_files_are_followed_however_they_are_replaced(tmp_path: Path) -> None:
    _, _, shown = followed(tmp_path)

    async def is_shown(pair: Pair) -> bool:
        await shown.look()
        await shown.look()
        return shown.served.texts.certificate == pair.certificate

    # In place.
    second = CA.pair()
    (tmp_path / "certificate.pem").write_bytes(second.certificate)
    (tmp_path / "key.pem").write_bytes(second.key)
    assert await is_shown(second)
    # By a directory behind a symlink that is swapped, as Kubernetes does.
    third = CA.pair()
    folder = tmp_path / "..data"
    folder.mkdir()
    write_pair(folder, third)
    for name in ("certificate.pem", "key.pem"):
        link = tmp_path / f"{name}.link"
        os.symlink(folder / name, link)
        link.replace(tmp_path / name)
    assert await is_shown(third)


async def test_half_of_a_pair_waits_for_the_other(tmp_path: Path) -> None:
    files, first, shown = followed(tmp_path)
    second = CA.pair()
    put(files.certificate, second.certificate)
    await shown.look()
    put(files.key, second.key)
    await shown.look()
    assert shown.served.texts.certificate == first.certificate
    assert not shown.error
    await shown.look()
    assert shown.served.texts.certificate == second.certificate


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)]
)
def test_usual_keys_are_taken(key: object, tmp_path: Path) -> None:
    assert load_certificate(write_pair(tmp_path, CA.pair(key=key))).facts.names[0] == "localhost"


def test_its_end_is_told_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shown = DoorCertificate(write_pair(tmp_path, CA.pair(days=3)))
    assert "renew it" in caplog.text
    assert 2.9 < shown.served.left_s() / 86_400 <= 3.0
    # One that has ended is shown all the same: clients say so, and nobody else is kept out.
    assert DoorCertificate(write_pair(tmp_path, CA.pair(days=-1))).served.left_s() < 0


def test_a_key_that_all_may_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_pair(tmp_path, CA.pair())
    DoorCertificate(files)
    assert "may read" not in caplog.text
    files.key.chmod(0o644)
    DoorCertificate(files)
    assert f"may read {files.key}: chmod 600" in caplog.text


def test_internal_calls_have_an_address_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as 127"):
        RouterConfig(
            checkpoint=tmp_path,
            model="m",
            secrets_file=tmp_path,
            tls=write_pair(tmp_path, CA.pair()),
        )
