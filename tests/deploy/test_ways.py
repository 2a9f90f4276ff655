"""What `penstock up` refuses of a cluster before it starts, as its processes themselves would."""

from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.secrets import create_secrets
from deploy.cluster_file.kind import CLUSTER
from deploy.placement import Machine, wanted
from deploy.ways import check_ways

HERE = Machine(machine_id="h", address="127.0.0.2")
THERE = Machine(machine_id="t", address="10.0.0.2")


def check(folder: Path, *machines: Machine, with_authority: bool = True, **spec: str) -> None:
    """`spec`: a cluster's values, as YAML."""
    secrets_file = folder / "secrets.yaml"
    if not secrets_file.exists():
        create_secrets(secrets_file, with_authority=with_authority)
    said = {"store": "redis://10.0.0.9:6379/0", "secretsFile": "secrets.yaml", **spec}
    document = CLUSTER.parse(
        "{apiVersion: penstock/v1, kind: Cluster, metadata: {name: lab}, spec: {"
        + ", ".join(f"{key}: {value}" for key, value in said.items())
        + "}}"
    )
    check_ways([each.order for each in wanted(document, folder)], machines)


def test_under_tls_with_a_front_door_on_loopback_no_word_is_needed(tmp_path: Path) -> None:
    check(tmp_path, HERE, THERE)


def test_without_an_authority_the_word_is_needed_where_others_can_listen_in(tmp_path: Path) -> None:
    said = r"^router-0 on 10\.0\.0\.2: 'internal' .* holds no authority for TLS.*insecure: true"
    with pytest.raises(ConfigError, match=said):
        check(tmp_path, HERE, THERE, with_authority=False)
    check(tmp_path, HERE, with_authority=False)
    check(tmp_path, THERE, with_authority=False, insecure="true")


def test_kv_that_has_no_tls_needs_the_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prefill-0 on .* KV by nixl has no TLS"):
        check(tmp_path, THERE, transports="[nixl, tcp]")
    check(tmp_path, THERE, transports="[nixl, tcp]", insecure="true")


def test_a_front_door_beyond_loopback_needs_the_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody asks who they are"):
        check(tmp_path, THERE, routers="{bind: 0.0.0.0}")
    check(tmp_path, THERE, routers="{bind: 0.0.0.0}", insecure="true")
    check(tmp_path, THERE, routers="{bind: 0.0.0.0, keysFile: keys.json}")


def test_each_machine_may_have_secrets_that_this_one_has_not(tmp_path: Path) -> None:
    check(tmp_path, THERE, secretsFile="/nowhere/secrets.yaml")


def test_where_weights_will_be_pulled_to_is_for_each_machine_to_say(tmp_path: Path) -> None:
    digest = "sha256:" + "a" * 64
    check(tmp_path, THERE, weights=f"{{source: /shared/model, digest: '{digest}'}}")
