"""A cluster of processes that asks for keys: commands, OpenAI's unmodified client, revocation, and
what stands in the logs."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.deploy.served import COMMAND, Served, environment_of, serving

QUESTION: list[Any] = [{"role": "user", "content": "What does len do?"}]
ANSWER = "Return the number of items in a container."

pytestmark = pytest.mark.slow


@dataclass
class Keyed:
    served: Served
    path: Path
    keys: dict[str, str]  # by id

    def logs(self) -> str:
        logs = Path(self.served.ready["log_dir"])
        said = "".join(each.read_text() for each in logs.rglob("*") if each.is_file())
        return said + "".join(self.served.said)


def keys_command(home: Path, *words: str) -> str:
    done = subprocess.run(
        [*COMMAND, "keys", *words],
        env=environment_of(home),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    home = tmp_path_factory.mktemp("home")
    path = home / "keys.json"
    plans: dict[str, tuple[str, ...]] = {"acme": (), "rival": (), "small": ("--requests", "1")}
    keys = {
        name: keys_command(home, "add", str(path), "--tenant", name, "--id", name, *limits)
        for name, limits in plans.items()
    }
    with serving(home, "--keys", str(path)) as served:
        yield Keyed(served, path, keys)


def client_of(keyed: Keyed, key: str) -> openai.OpenAI:
    base = f"http://{keyed.served.ready['http']}/v1"
    return openai.OpenAI(base_url=base, api_key=key, max_retries=0)


def chat(client: openai.OpenAI) -> Any:
    return client.chat.completions.create(model="penstock-tiny", messages=QUESTION, temperature=0)


def test_openais_client_is_let_in_refused_and_limited_in_its_own_words(keyed: Keyed) -> None:
    with client_of(keyed, keyed.keys["acme"]) as client:
        assert chat(client).choices[0].message.content == ANSWER
        assert chat(client).usage.prompt_tokens_details.cached_tokens == 64
    with client_of(keyed, keyed.keys["rival"]) as client:
        assert chat(client).usage.prompt_tokens_details.cached_tokens == 0
    with client_of(keyed, "sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        chat(client)
    with client_of(keyed, keyed.keys["small"]) as client:
        chat(client)
        with pytest.raises(openai.RateLimitError):
            chat(client)


def test_commands_take_a_key(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, served = ("generate", QUESTION[0]["content"], "--temperature", "0"), keyed.served
    assert served.ready["asks_keys"] is True
    ended = served.penstock(*ask)
    assert (ended.returncode, "authorization: Bearer KEY" in ended.stderr) == (3, True)
    ended = served.penstock(*ask, "--api-key", keyed.keys["acme"])
    assert (ended.returncode, ended.stdout) == (0, ANSWER + "\n")
    monkeypatch.setenv("PENSTOCK_API_KEY", keyed.keys["rival"])
    assert served.penstock(*ask).stdout == ANSWER + "\n"
    assert served.penstock("models").returncode == 0
    ended = served.penstock("status")  # an operator's: it needs none
    assert "callers have API keys: 3" in ended.stdout
    assert served.penstock("bench", "--requests", "3", "--unloaded", "0").returncode == 0


def test_who_is_added_comes_in_and_who_is_revoked_is_out_in_two_seconds(keyed: Keyed) -> None:
    home, path = keyed.served.home, str(keyed.path)
    key = keys_command(home, "add", path, "--tenant", "late", "--id", "late")
    keyed.keys["late"] = key
    assert within_s(keyed, key, is_in=True) < 2.0
    keys_command(home, "revoke", path, "late")
    assert within_s(keyed, key, is_in=False) < 2.0


def within_s(keyed: Keyed, key: str, *, is_in: bool) -> float:
    began = time.monotonic()
    with client_of(keyed, key) as client:
        while time.monotonic() - began < 20:
            try:
                client.models.list()
            except openai.AuthenticationError:
                if not is_in:
                    break
            else:
                if is_in:
                    break
            time.sleep(0.05)
    return time.monotonic() - began


def test_logs_tell_who_came_and_went_and_no_key(keyed: Keyed) -> None:
    said = keyed.logs()
    assert "tenant=acme key=acme" in said
    assert "caller added tenant=late key=late" in said
    assert "caller revoked tenant=late key=late" in said
    assert "keys loaded: 3 keys" in said
    assert not any(key[4:] in said for key in keyed.keys.values())
    assert "sk-wrong" not in said
