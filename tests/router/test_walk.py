"""How a request goes through the router: from room to room, and not to and fro."""

from cluster.types import Role
from penstock.v1 import inference_pb2 as pb
from router.front.service import InferenceService
from tests.router.cluster_of_fakes import Cluster
from tests.router.walk import walked


async def test_a_request_goes_through_the_router_without_turning_back(cluster: Cluster) -> None:
    async with cluster.worker("d0") as decode, cluster.worker("p0", Role.PREFILL) as prefill:
        await cluster.serving(decode, prefill)
        decode.report(num_running=600)
        pool, clock = cluster.router.pool, cluster.router.clock
        await cluster.until(lambda: pool.snapshot(clock()).decode[0].num_running == 600)
        with walked(InferenceService.generate.__code__) as walk:
            ids = pb.TokenIds(ids=[1] * 400)
            # By a name that no lot falls on: a sample is placed a second time, in hindsight.
            answer = await cluster.generate(
                request_id="walk", token_ids=ids, stop={"max_tokens": 2}
            )
        assert answer.messages[0].accepted.prefill_worker == "p0"
    print(f"\n{walk}")
    # Both may only fall. Some 28 of the stays, and 22 of the returns, are the rules of a front
    # door, which were in another folder, and not counted, before they had a room here. Three are
    # what callers' keys cost: who asks, and what he may take before and after his words are tokens.
    # One more of each: what a request's end tells who scrapes.
    assert len(walk.stays) <= 146
    assert walk.num_returns <= 95
