"""What is said between processes of two wire versions that follow each other, and what they leave
in the store, is understood by both."""

from copy import deepcopy
from dataclasses import replace

import pytest
from google.protobuf.message import Message

from cluster.channel import open_channel
from cluster.membership import Membership
from cluster.rpc import Call, Server, service_handlers
from cluster.store import MemoryStore
from cluster.types import Role
from cluster.wire_version import WIRE_VERSION
from cluster.worker_codec import member_to_pb
from penstock.v1 import worker_pb2
from tests.cluster.cluster_samples import FINGERPRINT, member
from tests.cluster.wire_contract import (
    breaks,
    contract,
    is_recorded,
    recorded,
    shared_with_routers,
)
from worker.registrar import RpcRegistrar

# As a worker of wire version 2 writes `member()`.
RECORD = bytes.fromhex(
    "0a6f0a0264301201311a0b3132372e302e302e313a3122060a0161120162221a0a0d7368617265645f6d656d6f7279"
    "12092f72756e2f706f6f6c2a350a056d6f64656c1209746f6b656e697a65721a0874656d706c6174652207666c6f61"
    "7433322810300238024008481050405802600210021a016d2080102810"
)
LATER = b"\xba\x3e\x05later"  # field 999, which nobody knows yet
OF_2 = replace(FINGERPRINT, wire_version=2)


@pytest.mark.parametrize("record", [RECORD, RECORD + LATER])
async def test_a_members_record_of_the_version_before_or_after_is_read(record: bytes) -> None:
    store = MemoryStore()
    await store.put("member/decode/d0", record)
    assert await Membership(store).members() == [member(fingerprint=OF_2)]


async def test_a_member_that_is_not_understood_hides_no_other_from_a_worker() -> None:
    stranger = member_to_pb(member("p0", role=Role.PREFILL))
    stranger.worker.fingerprint.kv_dtype = "float2"
    asked = worker_pb2.RegisterResponse(members=[stranger, member_to_pb(member())])

    async def register(request: worker_pb2.RegisterRequest, call: Call) -> Message:
        return asked

    service = service_handlers("penstock.v1.Cluster", {"Register": register})
    async with Server([service]) as server, open_channel(server.address, None) as channel:
        assert await RpcRegistrar(channel).register(member(), ttl_s=3) == [member()]


def test_nothing_changes_within_a_wire_version() -> None:
    assert is_recorded(WIRE_VERSION), "record it: python -m tests.cluster.wire_contract"
    before, now = recorded(WIRE_VERSION), contract()
    assert breaks(before, now, set(before)) == [], "raise the wire version"


def test_routers_and_the_store_understand_the_wire_version_before() -> None:
    if not is_recorded(WIRE_VERSION - 1):
        assert WIRE_VERSION == 2, "contracts are recorded since version 2"
        return
    assert breaks(recorded(WIRE_VERSION - 1), contract(), shared_with_routers()) == []


def test_a_field_that_goes_or_means_something_else_is_seen() -> None:
    before = contract()
    now = deepcopy(before)
    del now["penstock.v1.LoadReport"]["1"]
    now["penstock.v1.Grant"]["1"] = "type 9 other"
    of_routers = breaks(before, now, shared_with_routers())
    assert [line.partition(":")[0] for line in of_routers] == ["penstock.v1.LoadReport, field 1"]
    assert len(breaks(before, now, set(before))) == 2
