"""The files for `ray up` and for KubeRay are what Ray, EC2 and Kubernetes take, and ask for what KV
transfer needs; and the checks that say so refuse broken copies."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.cluster_file.kind import CLUSTER
from tests.manifests import kubernetes_files
from tests.manifests.ray_files import our_faults, rays_faults

ROOT = Path(__file__).resolve().parents[2]
RAY_FILES = sorted((ROOT / "deploy" / "ray").glob("*.yaml"))
KUBERAY = ROOT / "deploy" / "kuberay" / "cluster.yaml"
Breaks = Callable[[dict[str, Any]], Any]

pytestmark = pytest.mark.slow  # Ray takes a second to import


def loaded(name: str) -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "deploy" / "ray" / name).read_text())
    assert isinstance(document, dict)
    return document


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(KUBERAY.read_text()))


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_ray_and_we_take_what_is_shipped(path: Path) -> None:
    assert rays_faults(loaded(path.name)) == []
    assert our_faults(loaded(path.name)) == []


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_nobody_gets_in_unasked(path: Path) -> None:
    text = path.read_text()
    document = loaded(path.name)
    head = " ".join(document["head_start_ray_commands"])
    assert "RAY_AUTH_MODE=token" in text
    assert "~/.ray/auth_token" in document["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--disable-usage-stats" in head
    assert text.count("--object-store-memory=78643200") == 2
    # Shells and logs show what stands in a command: no secret does.
    assert not {"auth_token:", "cluster_token", "hash_secret"} & set(head.split())


PATIENCE = re.compile(r'RAY_gcs_rpc_server_reconnect_timeout_s(?:=|, value: ")(\d+)')


@pytest.mark.parametrize("path", [*RAY_FILES, KUBERAY], ids=lambda path: path.name)
def test_the_head_may_be_away_and_comes_back_with_what_it_knew(path: Path) -> None:
    text = path.read_text()
    [patience_s] = PATIENCE.findall(text)
    assert int(patience_s) >= 600
    assert "RAY_kill_child_processes_on_worker_exit" in text  # false: what was placed drains
    assert "RAY_worker_niceness" in text  # 0: else it gives way to whatever else runs there
    assert "rediss://" in text
    # Its process list shows a password; who has the key is let in without.
    assert "RAY_REDIS_CLIENT_KEY" in text
    assert "redis-password" not in text
    assert "redisPassword" not in text


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_where_ray_waits_for_its_head_it_is_not_started_anew(path: Path) -> None:
    [command] = loaded(path.name)["worker_start_ray_commands"]
    assert command.startswith("pgrep -ax raylet | grep -qF")


@pytest.mark.parametrize(
    ("name", "broken", "told"),
    [
        ("local.yaml", lambda d: d.update(cluser_name="x"), "cluser_name"),
        ("local.yaml", lambda d: d.update(idle_timeout_minutes="1h"), "'1h' is not"),
        ("local.yaml", lambda d: d["provider"].update(type="lokal"), "lokal"),
        ("local.yaml", lambda d: d["provider"].update(worker_ips="10.0.0.2"), "array"),
        ("local.yaml", lambda d: d["auth"].update(ssh_pasword="x"), "ssh_pasword"),
        ("aws.yaml", lambda d: d.update(head_node_type="haed"), "head_node_type"),
        ("aws.yaml", lambda d: d.update(max_workers=1), "max_workers"),
        ("aws.yaml", lambda d: d["docker"].update(run_option=[]), "run_option"),
        ("aws.yaml", lambda d: d["docker"].pop("container_name"), "container"),
        ("aws.yaml", lambda d: d["available_node_types"]["gpu"].pop("resources"), "resources"),
    ],
)
def test_ray_refuses_a_broken_file(name: str, broken: Breaks, told: str) -> None:
    document = loaded(name)
    broken(document)
    assert told in " ".join(rays_faults(document))


def gpu(document: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = document["available_node_types"]["gpu"]["node_config"]
    return config


@pytest.mark.parametrize(
    ("name", "broken", "told"),
    [
        ("local.yaml", lambda d: d["provider"].update(worker_ip=[]), "'worker_ips'?"),
        ("aws.yaml", lambda d: d["provider"].update(avail_zone="a"), "unknown key 'avail_zone'"),
        ("aws.yaml", lambda d: gpu(d).pop("InstanceType"), "gpu: $: 'InstanceType'"),
        ("aws.yaml", lambda d: gpu(d).update(InstanceTyp="g6e.xlarge"), "InstanceTyp"),
        ("aws.yaml", lambda d: gpu(d).update(ImageId="debian-12"), "debian-12"),
        ("aws.yaml", lambda d: gpu(d)["Placement"].update(GroupNam="x"), "GroupNam"),
        (
            "aws.yaml",
            lambda d: gpu(d)["NetworkInterfaces"][0].update(InterfaceType="EFA"),
            "'EFA' is not one of",
        ),
        ("aws.yaml", lambda d: gpu(d)["NetworkInterfaces"][0].pop("Groups"), "'Groups'"),
        ("aws.yaml", lambda d: gpu(d).update(SubnetId="subnet-00000000"), "beside Network"),
        ("aws.yaml", lambda d: gpu(d).update(PrivateIpAddress="10.0.0"), "'10.0.0' does not"),
    ],
)
def test_we_refuse_what_ray_lets_through(name: str, broken: Breaks, told: str) -> None:
    document = loaded(name)
    broken(document)
    assert rays_faults(copy.deepcopy(document)) == []
    assert told in " ".join(our_faults(document))


def test_gpu_machines_of_aws_have_what_rdma_needs() -> None:
    document = loaded("aws.yaml")
    options = document["docker"]["worker_run_options"]
    assert {"--ulimit memlock=-1:-1", "--cap-add IPC_LOCK", "--device /dev/infiniband"} <= {
        *options
    }
    assert any(option.startswith("--shm-size ") for option in options)
    assert gpu(document)["Placement"]["GroupName"]
    assert {each["InterfaceType"] for each in gpu(document)["NetworkInterfaces"]} == {"efa"}
    zones = document["provider"]["availability_zone"]
    assert "," not in zones


def test_kubernetes_takes_what_is_shipped() -> None:
    assert kubernetes_files.faults(manifests()) == []
    kinds = [document["kind"] for document in manifests()]
    assert kinds == ["ConfigMap", "RayCluster", "Service", "Job"]


def pod(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return dict(kubernetes_files.pods(documents))[name]


def of_kind(kind: str) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    return lambda documents: kubernetes_files.by_kind(documents, kind)["spec"]


RAY, SERVICE, JOB = of_kind("RayCluster"), of_kind("Service"), of_kind("Job")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda d: d[1].update(apiVersion="ray.io/v1alpha1"), "'ray.io/v1' was expected"),
        (lambda d: d[1].update(kind="RayClutser"), "no such kind"),
        (lambda d: RAY(d).pop("headGroupSpec"), "'headGroupSpec' is a required property"),
        (lambda d: RAY(d).update(workerGroupSpec=[]), "'workerGroupSpec' was unexpected"),
        (lambda d: RAY(d)["workerGroupSpecs"][0].update(replicas="2"), "replicas: '2' is not"),
        (lambda d: RAY(d)["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
        (lambda d: RAY(d)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "0 is not"),
        (lambda d: pod(d, "gpu").update(hostnetwork=True), "'hostnetwork' was unexpected"),
        (lambda d: pod(d, "gpu")["containers"][0].pop("image"), "'image' is a required"),
        (lambda d: pod(d, "gpu")["volumes"][3]["emptyDir"].update(medium="memory"), "'memory'"),
        (lambda d: pod(d, "gpu")["volumes"].pop(), "gpu: no volume 'memory'"),
        (lambda d: SERVICE(d)["ports"][0].update(port=500510), "500510 is greater"),
        (lambda d: SERVICE(d)["selector"].update({"ray.io/group": "router"}), "group 'router'"),
        (lambda d: JOB(d).update(backofLimit=3), "'backofLimit' was unexpected"),
    ],
)
def test_a_broken_manifest_is_refused(
    broken: Callable[[list[dict[str, Any]]], Any], told: str
) -> None:
    documents = manifests()
    broken(documents)
    assert told in " ".join(kubernetes_files.faults(documents))


def test_pods_have_what_kv_transfer_needs() -> None:
    documents = manifests()
    gpus = pod(documents, "gpu")
    container = gpus["containers"][0]
    assert gpus["hostNetwork"]
    assert gpus["dnsPolicy"] == "ClusterFirstWithHostNet"  # else no Service is found by its name
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert "rdma/hca" in container["resources"]["limits"]
    for name, each in kubernetes_files.pods(documents):
        mounted = each["containers"][0]["volumeMounts"]
        mounts = {mount["mountPath"]: mount["name"] for mount in mounted}
        volumes = {volume["name"]: volume for volume in each["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory", name
        assert volumes["secrets"]["secret"]["defaultMode"] == 0o400, name  # Penstock wants no less


def test_pools_fit_into_the_shared_memory_of_a_machine(tmp_path: Path) -> None:
    documents = manifests()
    path = tmp_path / "cluster.yaml"
    path.write_text(kubernetes_files.by_kind(documents, "ConfigMap")["data"]["cluster.yaml"])
    spec = CLUSTER.load(path).spec
    volumes = pod(documents, "gpu")["volumes"]
    [memory] = [volume["emptyDir"] for volume in volumes if "emptyDir" in volume]
    # All on one machine, while the others are away.
    pools = sum((pool.kv_pool_bytes or 0) * pool.min_workers for pool in spec.pools)
    assert pools < int(memory["sizeLimit"].removesuffix("Gi")) * 2**30
    doors = RAY(documents)["workerGroupSpecs"][0]
    assert doors["minReplicas"] == spec.routers.count
    assert doors["labels"] == {"rack": spec.routers.labels.rack}
    assert doors["groupName"] == SERVICE(documents)["selector"]["ray.io/group"]
    port = SERVICE(documents)["ports"][0]["port"]
    assert spec.routers.ports == (port,)
    assert str(spec.secrets_file).startswith("/etc/penstock/secrets/")
