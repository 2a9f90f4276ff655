"""What is wrong in a file for `ray up`: Ray's own validator, then what it does not look into: the
provider's keys, and what EC2 is asked for."""

import difflib
from collections.abc import Iterator
from typing import Any

import jsonschema
from click import ClickException

PROVIDERS = {
    "local": {"head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
    "aws": {
        *("region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"),
        *("security_group", "cloudwatch", "aws_credentials", "key_pair"),
    },
}


def text(pattern: str = "") -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def keys(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listing(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


NUMBER = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}
GROUPS = listing(text("^sg-[0-9a-f]{8,17}$"))
SUBNET = text("^subnet-[0-9a-f]{8,17}$")
ANYTHING: dict[str, Any] = {"type": "object"}

# Of EC2's RunInstances: what may stand in a 'node_config'. Ray sends it as it is.
NODE_CONFIG = keys(
    "InstanceType ImageId",
    InstanceType=text(r"^[a-z0-9-]+\.[a-z0-9-]+$"),
    ImageId=text("^ami-[0-9a-f]{8,17}$"),
    SubnetId=SUBNET,
    PrivateIpAddress=text(r"^\d+(\.\d+){3}$"),
    SubnetIds=listing(SUBNET),
    SecurityGroupIds=GROUPS,
    KeyName=text(),
    IamInstanceProfile=keys(Arn=text("^arn:"), Name=text()),
    Placement=keys(
        GroupName=text(),
        GroupId=text(),
        AvailabilityZone=text(),
        Tenancy={"enum": ["default", "dedicated", "host"]},
        PartitionNumber=NUMBER,
    ),
    NetworkInterfaces=listing(
        keys(
            "DeviceIndex SubnetId Groups",
            DeviceIndex=NUMBER,
            NetworkCardIndex=NUMBER,
            InterfaceType={"enum": ["interface", "efa", "efa-only"]},
            SubnetId=SUBNET,
            Groups=GROUPS,
            Description=text(),
            DeleteOnTermination=FLAG,
            AssociatePublicIpAddress=FLAG,
        )
    ),
    BlockDeviceMappings=listing(
        keys(
            "DeviceName",
            DeviceName=text("^/dev/"),
            Ebs=keys(
                VolumeSize=NUMBER,
                VolumeType=text(),
                Iops=NUMBER,
                Throughput=NUMBER,
                Encrypted=FLAG,
                DeleteOnTermination=FLAG,
                KmsKeyId=text(),
                SnapshotId=text(),
            ),
        )
    ),
    InstanceMarketOptions=ANYTHING,
    CapacityReservationSpecification=ANYTHING,
    MetadataOptions=ANYTHING,
    LaunchTemplate=ANYTHING,
    TagSpecifications=listing(ANYTHING),
    UserData=text(),
    EbsOptimized=FLAG,
)


def rays_faults(document: dict[str, Any]) -> list[str]:
    """What `ray up` itself would say before it asks for a machine."""
    # Loaded here: its extension in a process with those of torch, gRPC and NIXL has crashed it.
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(document))
    except jsonschema.ValidationError as error:
        return [error.message]
    except (ClickException, AssertionError, KeyError, RuntimeError, ValueError) as error:
        return [str(error)]
    return []


def our_faults(document: dict[str, Any]) -> list[str]:
    """What Ray takes and means nothing, or is refused by the cloud minutes later."""
    found = list(_unknown(document["provider"]))
    if document["provider"]["type"] == "aws":
        for name, kind in document["available_node_types"].items():
            found += [f"{name}: {fault}" for fault in _ec2_faults(kind["node_config"])]
    return found


def _unknown(provider: dict[str, Any]) -> Iterator[str]:
    known = {"type", *PROVIDERS[provider["type"]]}
    for key in sorted(provider.keys() - known):
        nearest = difflib.get_close_matches(key, known, 1)
        yield f"provider: unknown key '{key}'" + (f": '{nearest[0]}'?" if nearest else "")


def _ec2_faults(config: dict[str, Any]) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(NODE_CONFIG).iter_errors(config):
        yield f"{error.json_path}: {error.message}"
    twice = {"SubnetId", "SubnetIds", "SecurityGroupIds", "PrivateIpAddress"} & config.keys()
    if "NetworkInterfaces" in config and twice:
        yield f"{', '.join(sorted(twice))} beside NetworkInterfaces: each interface has its own"
