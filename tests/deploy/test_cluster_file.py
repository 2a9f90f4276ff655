"""A cluster's file means what it says, or nothing at all."""

import contextlib
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import parse_config
from cluster.document.keys import keys_of, yaml_text
from cluster.document.schema import schema_text
from cluster.errors import ConfigError
from cluster.limits import Limits
from cluster.secrets import create_secrets, load_secrets
from cluster.strict_yaml import parse_yaml
from deploy.cluster_file.document import (
    ClusterDocument,
    ClusterSpec,
    Labels,
    Resources,
    Routers,
    WorkerPool,
    default_cluster,
)
from deploy.cluster_file.kind import CLUSTER, cluster_schema
from deploy.cluster_file.local import SHIPPED_MODEL, left_out, local_plan
from deploy.plan import ClusterPlan, Part
from penstock.cli.findings import review
from router.config import RouterConfig
from tests.deploy.broken_clusters import (
    BROKEN,
    DECODE,
    MISSHAPEN,
    SENSELESS,
    UNREADABLE,
    Broken,
    pool,
    pools,
    routers,
    spec,
)
from tests.documents import put_scrap

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "deploy" / "clusters").glob("*.yaml"))
SCHEMA = jsonschema.Draft202012Validator(cluster_schema())
EVERYTHING = (ROOT / "deploy" / "clusters" / "machines.yaml").read_text()


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_cluster_is_refused_and_found_wrong_by_itself_alone(broken: Broken) -> None:
    with pytest.raises(ConfigError) as caught:
        CLUSTER.parse(broken.text, "cluster.yaml")
    assert broken.sentence in caught.value.message
    assert "cluster.yaml" in caught.value.message
    assert "hunter2" not in caught.value.message
    found = review(CLUSTER, broken.text, "it")
    assert found.document is None
    assert any(broken.sentence in each.sentence for each in found.findings)
    assert len(found.findings) <= 2


def test_there_are_a_hundred_of_them() -> None:
    assert len(BROKEN) == len(UNREADABLE) + len(MISSHAPEN) + len(SENSELESS)
    assert len(BROKEN) >= 100


MANY = """apiVersion: penstock/v1
kind: Cluster
metadata: {name: A}
spec:
  pools:
    - name: a
      role: prefil
      minWorkers: 3
      maxWorkers: 2
    - {name: b, role: decode, kvPool: 8, tensorParallel: 2}
    - {name: b, role: decode, blockSize: 5}
    - {name: c, role: decode, labels: {hst: a}}
  transports: [tcp, 1]
  requireTransport: nixl
  routers: {ports: [1, 1], bind: 0.0.0.0}
  limits: {maxN: 0}
  drain: 30
  polcyFile: a
"""


def test_everything_is_told_at_once_in_the_order_of_the_lines() -> None:
    told = [f"{each.line}: {each.sentence}" for each in review(CLUSTER, MANY, "it").findings]
    expected = [
        "3: 'metadata': 'A' is no name of a cluster",
        "7: 'spec.pools[0].role' is \"prefil\"",
        "9: 'spec.pools[0]': 'maxWorkers' is 2",
        "10: 'spec.pools[1].kvPool' is 8",
        "10: 'spec.pools[1]': 'tensorParallel' is 2",
        "11: 'spec.pools[2].name' is 'b'",
        "11: 'spec.pools[2].blockSize' is 5",
        "12: 'hst' in 'spec.pools[3].labels' is an unknown key",
        "13: 'spec.transports[1]' is 1",
        "14: 'spec.requireTransport' is 'nixl'",
        "15: 'spec.routers.ports' has 2 ports for 1 routers",
        "15: 'spec.routers.ports' has 1 twice",
        "15: 'spec.routers.bind' is '0.0.0.0'",
        "16: 'spec.limits': 'maxN' is 0",
        "17: 'spec.drain' is 30",
        "18: 'polcyFile' in 'spec' is an unknown key",
    ]
    assert len(told) == len(expected), told
    for line, beginning in zip(told, expected, strict=True):
        assert line.startswith(beginning)


RISKY = {
    "more threads than cores": (
        pool("numThreads: 8, resources: {cpus: 2}"),
        "'spec.pools[0].numThreads' is 8, on 2 of the processor's cores",
    ),
    "idle GPUs": (pool("resources: {gpus: 1}"), "'spec.pools[0].resources.gpus' is 1, and 'device"),
    "a GPU that nobody keeps": (
        pool("device: cuda"),
        "'spec.pools[0].device' is 'cuda', and no GP",
    ),
    "a pool of nobody": (
        pools(f"{DECODE}, {{name: p, role: prefill, minWorkers: 0}}"),
        "'spec.pools[1].minWorkers' is 0, and so is what it may grow to",
    ),
    "memory between machines": (
        spec(
            "{transports: [shared_memory], pools: [{name: a, role: decode, labels: {host: x}},"
            " {name: b, role: prefill, labels: {host: y}}]}"
        ),
        "'spec.transports' is shared_memory alone, and the pools are on 2 machines",
    ),
    "a store without secrets": (
        spec("{store: 'redis://a:1/0'}"),
        "'spec.store' keeps what was sealed with the secrets of a start",
    ),
    "a word for nothing": (spec("{insecure: true}"), "'spec.insecure' is true, and the routers"),
    "an address that leads nowhere": (
        routers("advertise: chat.internal"),
        "'spec.routers.advertise' is 'chat.internal', and the routers listen on 127.0.0.1",
    ),
    "a deadline that is cut": (
        spec("{limits: {defaultDeadline: 2h}}"),
        "'spec.limits.defaultDeadline' is longer than 'maxDeadline'",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), RISKY.values(), ids=RISKY)
def test_what_is_probably_not_meant_is_told_with_its_line(text: str, sentence: str) -> None:
    found = review(CLUSTER, text, "it")
    assert found.document is not None
    [risk] = found.findings
    assert risk.sentence.startswith(sentence)
    assert risk.line == 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid_and_nothing_in_it_is_risky(path: Path) -> None:
    assert review(CLUSTER, path.read_text(), path.name).findings == ()
    SCHEMA.validate(parse_yaml(path.read_text(), source="it"))
    schema = path.read_text().partition("$schema=")[2].split("\n")[0]
    assert (path.parent / schema).resolve() == CLUSTER.schema


def test_the_shipped_schema_is_what_the_code_makes() -> None:
    """If not: `python -m deploy.cluster_file.kind > deploy/cluster_file/cluster.schema.json`."""
    assert CLUSTER.schema.read_text() == schema_text(cluster_schema())
    SCHEMA.check_schema(json.loads(CLUSTER.schema.read_text()))


@pytest.mark.parametrize("broken", MISSHAPEN.values(), ids=MISSHAPEN)
def test_the_schema_refuses_what_has_a_wrong_shape(broken: Broken) -> None:
    assert not SCHEMA.is_valid(parse_yaml(broken.text, source="it"))


@pytest.mark.parametrize("broken", SENSELESS.values(), ids=SENSELESS)
def test_what_only_the_parser_refuses_has_the_right_shape(broken: Broken) -> None:
    """But for names, whose form a schema knows."""
    if "is no name" not in broken.sentence:
        SCHEMA.validate(parse_yaml(broken.text, source="it"))


@pytest.mark.parametrize("text", [EVERYTHING, spec("{}"), spec("{limits: {maxMessage: 1MiB}}")])
def test_what_is_shown_is_the_same_cluster(text: str) -> None:
    document = CLUSTER.parse(text)
    assert CLUSTER.parse(yaml_text(CLUSTER.effective(document))) == document
    SCHEMA.validate(CLUSTER.effective(document))


def test_what_is_left_out_is_what_serve_starts_without_a_file() -> None:
    document = CLUSTER.parse(spec("{}").replace("broken", "local"))
    assert document == default_cluster()
    plan = local_plan(document, Path())
    assert [(pool.name, pool.num) for pool in plan.all_pools] == [("prefill", 1), ("decode", 1)]
    assert (plan.checkpoint, plan.host, plan.port) == (SHIPPED_MODEL, "127.0.0.1", 50051)
    assert list(left_out(document)) == []


def test_two_keys_of_a_section_are_never_spelt_alike() -> None:
    for section in (ClusterDocument, ClusterSpec, WorkerPool, Routers, Resources, Labels, Limits):
        names = [key.name for key in keys_of(section)]
        assert len(set(names)) == len(names)


@pytest.mark.slow
@given(data=st.data())
def test_a_cluster_with_anything_anywhere_is_valid_or_refused(data: st.DataObject) -> None:
    """What is taken can be shown, and is taken again."""
    mapping = parse_yaml(EVERYTHING, source="it")
    put_scrap(data, mapping["spec"], ("8GiB",))
    review(CLUSTER, json.dumps(mapping), "it")
    with contextlib.suppress(ConfigError):
        document = CLUSTER.document_of(mapping, "it")
        assert CLUSTER.parse(yaml_text(CLUSTER.effective(document))) == document


# What this machine starts of it


def plan_of(text: str, folder: Path) -> ClusterPlan:
    return local_plan(CLUSTER.parse(text), folder)


def test_where_clients_speak_tls_the_cluster_has_an_address_of_its_own(tmp_path: Path) -> None:
    tls = "{certificate: tls/chain.pem, key: tls/key.pem, clientCa: /etc/ca.pem}"
    plan = plan_of(spec(f"{{routers: {{internalPorts: [0], tls: {tls}}}}}"), tmp_path)
    config = dict(plan.router_plan(tmp_path / "secrets.yaml", 0).config)
    assert config["internal"] == "127.0.0.1:0"
    assert config["tls"] == {
        "certificate": str(tmp_path / "tls/chain.pem"),
        "key": str(tmp_path / "tls/key.pem"),
        "client_ca": "/etc/ca.pem",
    }
    assert parse_config(RouterConfig, config).tls == plan.tls
    plain = plan_of(spec("{}"), tmp_path).router_plan(tmp_path / "secrets.yaml", 0).config
    assert not {"tls", "internal"} & plain.keys()
    with pytest.raises(ConfigError, match=r"'spec.routers.tls.key' is missing"):
        CLUSTER.parse(spec("{routers: {tls: {certificate: a}}}"))


def test_a_plan_has_what_the_file_says_of_each_process(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(SHIPPED_MODEL)
    (tmp_path / "policy.yaml").write_text(
        (ROOT / "deploy" / "policies" / "default.yaml").read_text()
    )
    plan = plan_of(
        spec(
            "{model: m, checkpoint: model, policyFile: policy.yaml, store: 'redis://a:1/0',"
            " secretsFile: s.yaml, metricsBind: 0.0.0.0, hashGrain: 32, drain: 5s,"
            " limits: {maxN: 3, maxMessage: 1MiB},"
            " routers: {ports: [7000]}, pools: [{name: p, role: prefill, minWorkers: 2,"
            " numThreads: 3}, {name: d, role: decode, blockSize: 32, numBlocks: 8, chunk: 100ms}]}"
        ),
        tmp_path,
    )
    router = plan.router_plan(tmp_path / "secrets.yaml", plan.port).config
    assert router["cluster"] == "broken"
    assert router["address"] == "127.0.0.1:7000"
    assert router["policy_file"] == str(tmp_path / "policy.yaml")
    assert (router["limits"]["max_n"], router["limits"]["max_message_bytes"]) == (3, 1 << 20)
    workers = plan.worker_plans(tmp_path / "secrets.yaml", tmp_path, "127.0.0.1:7000")
    assert [each.name for each in workers] == ["p-0", "p-1", "d-0"]
    assert [each.part for each in workers] == [Part.PREFILL, Part.PREFILL, Part.DECODE]
    assert {each.config["router"] for each in workers} == {"redis://a:1/0"} == {router["store"]}
    assert [each.config["num_threads"] for each in workers] == [3, 3, 1]
    assert {each.config["metrics"] for each in workers} == {"0.0.0.0:0"} == {router["metrics"]}
    decode = workers[-1].config
    assert (decode["num_blocks"], decode["block_size"], decode["chunk_s"]) == (8, 32, 0.1)
    assert {each.config["cluster"] for each in workers} == {"broken"}
    assert plan.secrets_file == tmp_path / "s.yaml"
    assert (plan.is_open, plan.internal_port) == (False, 50052)


@pytest.mark.parametrize(
    ("said", "port"),
    [
        ("count: 1", 8000),
        ("ports: [7]", 0),
        ("ports: [7], httpPorts: [9]", 9),
        ("httpPorts: []", None),
    ],
)
def test_openais_clients_have_a_port_of_their_own(said: str, port: int | None) -> None:
    assert plan_of(spec(f"{{routers: {{{said}}}}}"), Path()).http_port == port


def test_a_pool_of_bytes_has_as_many_blocks_as_fit() -> None:
    plan = plan_of(pool("kvPool: 1MiB"), Path())
    [decode] = plan.all_pools
    assert (
        0 < decode.pool_bytes <= 1 << 20 < decode.pool_bytes * (1 + 1 / decode.config["num_blocks"])
    )
    assert plan.pool_bytes == decode.pool_bytes
    with pytest.raises(ConfigError, match="The KV pool of 'd' has 1000 bytes, and one block takes"):
        plan_of(pool("kvPool: 1kB"), Path())


def test_what_no_process_could_start_from_is_refused_before_any(tmp_path: Path) -> None:
    for text, sentence in (
        ("{checkpoint: nowhere}", "There is no checkpoint directory at"),
        ("{policyFile: nowhere.yaml}", "nowhere.yaml' cannot be read"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            plan_of(spec(text), tmp_path)


def test_what_one_machine_cannot_do_is_told() -> None:
    told = list(left_out(CLUSTER.parse(EVERYTHING)))
    beginnings = [
        "one router is started, not 2",
        "pool 'prompts' stays at 2 workers",
        "pool 'prompts' has labels",
        "pool 'prompts' wants 1 GPUs",
        "pool 'answers' has labels",
        "pool 'answers' wants 1 GPUs",
    ]
    for line, beginning in zip(told, beginnings, strict=False):
        assert line.startswith(beginning)
    told = list(left_out(CLUSTER.parse(spec("{routers: {labels: {rack: r1}}}"))))
    assert told[0].startswith("routers have labels")


def test_a_password_of_the_store_is_kept_with_the_secrets(tmp_path: Path) -> None:
    path = tmp_path / "secrets.yaml"
    create_secrets(path)
    assert load_secrets(path).store_password is None
    with path.open("a") as file:
        file.write('store_password: "hunter2"\n')
    secrets = load_secrets(path)
    assert secrets.store_password == "hunter2"
    assert "hunter2" not in repr(secrets)
