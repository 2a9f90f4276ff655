"""A cluster that `penstock serve` started under TLS, as its operator and its clients have it: all
commands find their way, a new certificate is shown, and the old one stays for a broken one."""

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from penstock import Client
from router.tls.certificate import TlsFiles
from tests.certificates import Pair, SigningCa, client_context, der, put, shown_at, write_pair
from tests.deploy.served import Served, serving
from tests.identities import BEYOND_LOOPBACK

CA = SigningCa()
ANSWER = "Return the number of items in a container."

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass
class Secured:
    served: Served
    files: TlsFiles


def flags_of(files: TlsFiles) -> tuple[str, ...]:
    return "--tls-cert", str(files.certificate), "--tls-key", str(files.key)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    home = tmp_path_factory.mktemp("home")
    files = write_pair(home, CA.pair("llm.example.com", "127.0.0.1"))
    with serving(home, *flags_of(files)) as served:
        yield Secured(served, files)


def out_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clients_come_in_under_tls(secured: Secured) -> None:
    ready = secured.served.ready
    assert ready["tls"]
    context = client_context(CA)
    with openai.OpenAI(
        base_url=f"https://{ready['http']}/v1",
        api_key="none",
        http_client=openai.DefaultHttpxClient(verify=context),
    ) as client:
        question: list[Any] = [{"role": "user", "content": "What does len do?"}]
        reply = client.chat.completions.create(
            model="penstock-tiny", messages=question, temperature=0
        )
        assert reply.choices[0].message.content == ANSWER
    ca = put(secured.served.home / "ca.pem", CA.certificate)
    with Client(f"grpcs://{ready['address']}", ca_file=ca) as client_of_ours:
        assert client_of_ours.model().name == "penstock-tiny"


def test_commands_find_their_way(secured: Secured) -> None:
    penstock = secured.served.penstock
    assert ANSWER in out_of(penstock("generate", "What does len do?", "--temperature", "0"))
    assert set(secured.served.status()) == {"prefill-0", "decode-0"}
    at = ("-a", secured.served.address)
    assert "penstock-tiny" in out_of(penstock("models", *at))
    assert json.loads(out_of(penstock("status", "--json", *at)))["workers"]
    assert "generation 1 'default'" in out_of(penstock("policy", "status"))
    out_of(penstock("drain", "prefill-0", "--wait"))
    assert not secured.served.status()["prefill-0"]["serving"]
    out_of(penstock("undrain", "prefill-0"))
    examined = penstock("doctor", "--json")
    said = [each["what"] for each in json.loads(examined.stdout)["findings"]]
    assert any("holds for 20 days" in what or "holds for 19 days" in what for what in said), said
    assert any("llm.example.com" in what for what in said)
    assert any(what.endswith("is under TLS") for what in said)


def test_a_router_that_died_is_found_where_it_was(secured: Secured) -> None:
    before = secured.served.pids()["router"]
    os.kill(before, signal.SIGKILL)
    until(lambda: secured.served.pids()["router"] != before)
    until(lambda: secured.served.penstock("status").returncode == 0)
    assert ANSWER in out_of(
        secured.served.penstock("generate", "What does len do?", "--temperature", "0")
    )


def test_a_new_certificate_is_shown_and_a_broken_one_is_told(secured: Secured) -> None:
    renewed = CA.pair("llm.example.com")
    write_pair(secured.served.home, renewed)
    doors = secured.served.address, secured.served.ready["http"]
    until(lambda: [shown_at(each) for each in doors] == [der(renewed)] * 2)
    # Of a name that is not dialled: whoever was started here is known by the certificate itself.
    assert ANSWER in out_of(
        secured.served.penstock("generate", "What does len do?", "--temperature", "0")
    )
    write_pair(secured.served.home, Pair(renewed.certificate, CA.pair().key))

    def is_told() -> bool:
        examined = secured.served.penstock("doctor", "--json")
        return examined.returncode == 8 and "is not the key of" in examined.stdout

    until(is_told)
    assert shown_at(doors[0]) == der(renewed)


def until(condition: Any, within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.prove
def test_with_a_clients_ca_commands_still_come_in_beyond_loopback(tmp_path: Path) -> None:
    clients = SigningCa("clients")
    files = write_pair(tmp_path, CA.pair(BEYOND_LOOPBACK), clients.certificate)
    assert files.client_ca is not None
    flags = (*flags_of(files), "--tls-client-ca", str(files.client_ca), "--insecure")
    with serving(tmp_path, *flags, "--host", "0.0.0.0") as served:
        assert set(served.status()) == {"prefill-0", "decode-0"}
        shown = clients.pair(name="app")
        own = (
            *("--cert-file", str(put(tmp_path / "own.pem", shown.certificate))),
            *("--key-file", str(put(tmp_path / "own.key", shown.key))),
        )
        question = ("generate", "What does len do?", "--temperature", "0")
        assert ANSWER in out_of(served.penstock(*question, *own))
        refused = served.penstock(*question)
        assert refused.returncode != 0
        assert "give cert_file and key_file" in refused.stderr
        with pytest.raises((ssl.SSLError, openai.APIConnectionError)):
            openai.OpenAI(
                base_url=f"https://{served.ready['http']}/v1",
                api_key="none",
                max_retries=0,
                http_client=openai.DefaultHttpxClient(verify=client_context(CA)),
            ).models.list()
