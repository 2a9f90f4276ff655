"""Whoever offers what a caller must is served: a front door that is no gRPC is a new file."""

from dataclasses import dataclass, field

import pytest

from cluster.errors import StreamInterrupted
from penstock.v1 import inference_pb2 as pb
from router.caller import Caller
from router.callers.key_file import ANYBODY, ApiKey
from router.front.validation import check_generate
from router.request_line import RequestLine
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import Faults


@dataclass(slots=True)
class Heard:
    """A caller in this process."""

    key: ApiKey = ANYBODY
    phase: str = "request"
    tokens_emitted: int = 0
    remaining_s: float | None = 10.0
    metadata: list[tuple[str, str]] = field(default_factory=list)
    messages: list[pb.GenerateResponse] = field(default_factory=list)

    async def send_metadata(self, *metadata: tuple[str, str]) -> None:
        assert not self.messages
        self.metadata += metadata

    async def send(self, message: bytes) -> None:
        self.messages.append(pb.GenerateResponse.FromString(message))


async def ask(cluster: Cluster, caller: Caller, request_id: str) -> None:
    router = cluster.router
    text = router.lanes._text
    request = pb.GenerateRequest(text="hello", request_id=request_id)
    given = check_generate(request, text.info, text.limits)
    with RequestLine(router.clock(), router.clock, router.counts, request_id=request_id) as line:
        await router.reception.serve(given, caller, line, echo=(("id", request_id),))


async def test_another_front_door_gets_the_same_answer(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        heard = Heard()
        await ask(cluster, heard, "r")
        theirs = await cluster.generate(text="hello", request_id="r")
        tokens = [i for m in heard.messages for d in m.deltas for i in d.token_ids]
        assert tokens == theirs.token_ids
        assert heard.messages[-1].HasField("finished")
        assert (heard.metadata, heard.phase, heard.tokens_emitted) == ([("id", "r")], "decode", 5)


async def test_it_is_told_how_far_an_answer_came(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(end_after=2)) as worker:
        await cluster.serving(worker)
        heard = Heard()
        with pytest.raises(StreamInterrupted):
            await ask(cluster, heard, "r")
        assert (len(heard.messages), heard.tokens_emitted) == (2, 2)
