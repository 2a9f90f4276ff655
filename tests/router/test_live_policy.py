"""The policy of a running router, as operators and requests see it."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.types import Role
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from router.records import Fate
from tests.doors import ask_cluster
from tests.router.cluster_of_fakes import Cluster, failure
from tests.router.fake_worker import TOKEN, FakeWorker, Faults
from tests.router.policy_texts import policy_text

PROMPT = pb.TokenIds(ids=[1] * 64)
TRIAL = "  canary: {traffic: 50%, duration: 1h, minRequests: 20}\n"


async def ask(cluster: Cluster, method: str, request: Any, token: str = TOKEN) -> Any:
    return await ask_cluster(cluster.channel, method, request, token)


async def apply(cluster: Cluster, text: str, **fields: Any) -> worker_pb2.PolicyChange:
    request = worker_pb2.ApplyPolicyRequest(text=text, **fields)
    change: worker_pb2.PolicyChange = await ask(cluster, "ApplyPolicy", request)
    return change


async def status(cluster: Cluster) -> worker_pb2.PolicyStatusResponse:
    request = worker_pb2.PolicyStatusRequest()
    found: worker_pb2.PolicyStatusResponse = await ask(cluster, "PolicyStatus", request)
    return found


async def explain(cluster: Cluster, request_id: str) -> worker_pb2.ExplainResponse:
    request = worker_pb2.ExplainRequest(request_id=request_id)
    found: worker_pb2.ExplainResponse = await ask(cluster, "Explain", request)
    return found


async def test_the_history_says_who_changed_what_when_from_where(cluster: Cluster) -> None:
    began = time.time()
    await apply(cluster, policy_text(4.0, name="mine"), source="ops.yaml", by="ana@desk")
    await apply(cluster, policy_text(4.0, name="mine"), by="nobody")  # changes nothing
    await apply(cluster, policy_text(5.0, name="tried"), canary_share=0.5)
    await ask(cluster, "RollBackPolicy", worker_pb2.RollBackPolicyRequest(reason="no", by="bo"))
    reply = await ask(cluster, "PolicyHistory", worker_pb2.PolicyHistoryRequest())
    told = [(each.generation, each.name, each.by, each.address) for each in reply.changes]
    assert told == [
        (1, "default", "router", ""),
        (2, "mine", "ana@desk", "127.0.0.1"),
        (3, "tried", "unknown", "127.0.0.1"),
        (2, "mine", "bo", "127.0.0.1"),
    ]
    assert "ops.yaml" in reply.changes[1].why
    assert "rolled back: no" in reply.changes[3].why
    assert all(began - 60 < each.unix_seconds < time.time() + 1 for each in reply.changes)


async def test_operators_apply_ask_and_roll_back(cluster: Cluster) -> None:
    applied = await apply(cluster, policy_text(4.0, name="mine"), source="ops")
    assert applied.outcome == worker_pb2.POLICY_OUTCOME_APPLIED
    assert (applied.generation.number, applied.generation.name) == (2, "mine")
    seen = await status(cluster)
    assert seen.active.text == policy_text(4.0, name="mine")
    assert (seen.active.source, seen.previous.source) == ("ops", "default")
    assert seen.reload.last_reload_successful
    back = await ask(cluster, "RollBackPolicy", worker_pb2.RollBackPolicyRequest(reason="no"))
    assert back.outcome == worker_pb2.POLICY_OUTCOME_ROLLED_BACK
    seen = await status(cluster)
    assert (seen.active.number, seen.active.name) == (3, "default")
    assert seen.last_change == "Generation 2 was rolled back to what 1 said: no."
    assert [each.number for each in seen.traffic] == [1, 2, 3]


async def test_a_wrong_policy_is_refused_with_its_sentence(cluster: Cluster) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await apply(cluster, policy_text(4.0).replace("stretch", "strech"))
    found = failure(refused.value)
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.fields == ("text",)
    assert "did you mean 'stretch'?" in found.message
    seen = await status(cluster)
    assert (seen.active.number, seen.reload.last_reload_successful) == (1, False)
    assert "did you mean 'stretch'?" in seen.reload.error
    for method, request in (
        ("ReloadPolicy", worker_pb2.ReloadPolicyRequest()),
        ("RollBackPolicy", worker_pb2.RollBackPolicyRequest()),
        ("Explain", worker_pb2.ExplainRequest(request_id="never seen")),
        ("ApplyPolicy", worker_pb2.ApplyPolicyRequest(text=policy_text(), source="a\nb")),
        ("ApplyPolicy", worker_pb2.ApplyPolicyRequest(text=policy_text(), by="a\nb")),
        ("ReloadPolicy", worker_pb2.ReloadPolicyRequest(by="x" * 201)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(cluster, method, request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_nobody_without_the_token_touches_the_policy(cluster: Cluster) -> None:
    for method, request in (
        ("ApplyPolicy", worker_pb2.ApplyPolicyRequest(text=policy_text(9.0))),
        ("RollBackPolicy", worker_pb2.RollBackPolicyRequest()),
        ("ReloadPolicy", worker_pb2.ReloadPolicyRequest()),
        ("PolicyStatus", worker_pb2.PolicyStatusRequest()),
        ("Explain", worker_pb2.ExplainRequest(request_id="r")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(cluster, method, request, token="wrong")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_request_keeps_its_policy_when_it_is_placed_again(cluster: Cluster) -> None:
    """Its worker fails after a new policy has taken effect: it is due as the old one says."""
    stalled = Faults(stall_after=1, fail_after=2)
    async with cluster.worker("d0", faults=stalled) as d0:
        await apply(cluster, policy_text(more="  classes: [{name: slow, ttft: 50s}]\n"))
        await cluster.serving(d0)
        begun = asyncio.create_task(
            cluster.generate(token_ids=PROMPT, request_id="r", service_class="slow")
        )
        async with asyncio.timeout(5):
            await d0.served.wait()
        await apply(cluster, policy_text(more="  classes: [{name: fast, ttft: 1s}]\n"))
        async with cluster.worker("d1") as d1:
            await cluster.serving(d1)
            d0.resume()
            assert (await begun).is_complete
            assert d1.requests[0].due_seconds == pytest.approx(50.0, abs=1.0)
            await cluster.generate(token_ids=PROMPT)
            assert d1.requests[1].due_seconds == pytest.approx(1.0, abs=0.5)
    told = await explain(cluster, "r")
    assert told.generation.number == 2
    assert [each.candidates[0].decode for each in told.tries] == ["d0", "d1"]
    assert "d0" in {each.worker for each in told.tries[1].left_out}
    assert (told.outcome.state, told.outcome.moved) == ("finished", 1)
    traffic = {each.number: each.placed for each in (await status(cluster)).traffic}
    assert traffic == {1: 0, 2: 1, 3: 1}


async def test_an_explanation_tells_candidates_terms_and_what_came_of_it(
    cluster: Cluster,
) -> None:
    async with (
        cluster.worker("d0") as d0,
        cluster.worker("d1") as d1,
        cluster.worker("p0", Role.PREFILL) as p0,
    ):
        await cluster.serving(d0, d1, p0)
        d1.report(is_draining=True)
        await cluster.until(lambda: bool(cluster.router.pool.refusals(cluster.router.clock())))
        answer = await cluster.generate(token_ids=PROMPT, request_id="r", stop={"max_tokens": 5})
    told = await explain(cluster, "r")
    [only] = told.tries
    assert (told.prompt_tokens, told.service_class) == (64, "default")
    assert only.num_candidates == len(only.candidates) == 2
    chosen = only.candidates[0]
    accepted = answer.messages[0].accepted
    assert (chosen.decode, chosen.prefill) == (accepted.decode_worker, accepted.prefill_worker)
    assert [each.chosen for each in only.candidates] == [True, False]
    for each in only.candidates:
        assert sum(term.seconds for term in each.terms) == pytest.approx(each.price_seconds)
    assert only.margin_seconds > 0
    assert [(each.worker, each.reason) for each in only.left_out] == [("d1", "draining")]
    outcome = told.outcome
    assert (outcome.state, outcome.tokens, outcome.moved) == ("finished", 5, 0)
    assert 0 < outcome.ttft_seconds < outcome.total_seconds < 5
    assert only.HasField("regret_seconds")


@pytest.mark.parametrize(
    ("faults", "fields", "state", "error"),
    [
        (Faults(end_after=1), {}, "failed", "ended the answer too early"),
        (Faults(stall_after=1), {"timeout_s": 0.3}, "failed", ""),
        (Faults(), {"service_class": "no such"}, "cancelled", "There is no class 'no such'"),
    ],
    ids=["worker", "deadline", "caller"],
)
async def test_failures_are_on_record_with_whose_fault_they_are(
    cluster: Cluster, faults: Faults, fields: dict[str, Any], state: str, error: str
) -> None:
    async with cluster.worker("d0", faults=faults) as worker:
        await cluster.serving(worker)
        with pytest.raises(grpc.aio.AioRpcError):
            await cluster.generate(token_ids=PROMPT, request_id="r", **fields)
        await cluster.until(lambda: not list(cluster.router.placer.in_flight))
        told = await explain(cluster, "r")
        assert told.outcome.state == state
        assert error in told.outcome.error
        [traffic] = (await status(cluster)).traffic
        assert (traffic.errors, traffic.in_flight) == (int(state == "failed"), 0)


async def test_a_client_that_leaves_is_nobodys_fault(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=1)) as worker:
        await cluster.serving(worker)
        call = cluster.inference.Generate(pb.GenerateRequest(token_ids=PROMPT, request_id="r"))
        await call.read()
        assert (await explain(cluster, "r")).outcome.state == "answering"
        call.cancel()
        await cluster.until(lambda: not list(cluster.router.placer.in_flight))
        record = cluster.router.placer.records.find("r")
        assert record is not None
        assert (record.fate, record.live.since_start.num_errors) == (Fate.CANCELLED, 0)


async def _placements(checkpoint: Path, directory: Path, more: str) -> list[str]:
    """Where each of some requests goes, one after another."""
    directory.mkdir()
    async with Cluster(checkpoint, directory) as cluster:
        await apply(cluster, policy_text(more=more))
        async with contextlib.AsyncExitStack() as workers:
            for name in ("d0", "d1"):  # in this order, in every run
                await cluster.serving(await workers.enter_async_context(cluster.worker(name)))
            answers = [
                await cluster.generate(
                    token_ids=PROMPT, request_id=f"r{number}", stop={"max_tokens": 1}
                )
                for number in range(50)
            ]
        if "shadow" in more:
            shadow = (await status(cluster)).shadow
            assert (shadow.evaluated, shadow.failed) == (50, 0)
            assert shadow.disagreed > 0
        return [answer.messages[0].accepted.decode_worker for answer in answers]


@pytest.mark.slow
async def test_a_shadow_changes_no_placement(checkpoint: Path, tmp_path: Path) -> None:
    """The same requests under the same seed, with and without."""
    rule = "  placement: {rule: round_robin}\n"
    shadow = "  shadow: {sample: 100%, spec: {placement: {rule: power_of_two}}}\n"
    alone = await _placements(checkpoint, tmp_path / "alone", rule)
    beside = await _placements(checkpoint, tmp_path / "beside", rule + shadow)
    assert beside == alone
    assert set(alone) == {"d0", "d1"}


async def _traffic(cluster: Cluster, num: int) -> None:
    """Requests of which some may fail, as many at once as there are clients."""

    async def client(first: int) -> None:
        for number in range(first, num, 8):
            fields = {
                "request_id": f"r{number}",
                "stop": {"max_tokens": 1},
                "service_class": "chat",
            }
            with contextlib.suppress(grpc.aio.AioRpcError):
                await cluster.generate(token_ids=PROMPT, **fields)

    await asyncio.gather(*map(client, range(8)))


@pytest.mark.slow
async def test_a_canary_that_fails_its_requests_is_rolled_back_by_itself(
    cluster: Cluster,
) -> None:
    """It has lost a class that the policy in force knows."""
    await apply(cluster, policy_text(more="  classes: [{name: chat}]\n"))
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        trying = await apply(cluster, policy_text(more="  classes: [{name: batch}]\n" + TRIAL))
        assert trying.outcome == worker_pb2.POLICY_OUTCOME_CANARY
        assert "no 'chat' any more" in trying.warnings[-1]
        await _traffic(cluster, 120)
        await cluster.router.policy.look()  # at its next turn
        seen = await status(cluster)
        assert (seen.active.number, seen.HasField("canary")) == (2, False)
        assert seen.last_change.startswith("The canary 3 was rolled back by itself: ")
        assert "of its requests failed" in seen.last_change
        await _traffic(cluster, 10)
        assert {each.number: each.errors for each in (await status(cluster)).traffic}[2] == 0


async def _trial(cluster: Cluster, slow: FakeWorker, quick: FakeWorker, text: str) -> None:
    """Under the policy in force requests are quick; the slow worker answers late."""
    await cluster.serving(slow, quick)
    await apply(cluster, text)

    async def client(first: int) -> None:
        for number in range(first, 120, 8):
            await cluster.generate(
                token_ids=PROMPT, session_key=f"s{number % 40}", stop={"max_tokens": 1}
            )

    await asyncio.gather(*map(client, range(8)))


@pytest.mark.slow
async def test_a_slow_canary_is_rolled_back_by_itself(cluster: Cluster) -> None:
    """The policy in force keeps to the worker with the shorter queue, that on trial draws."""
    async with cluster.worker("d0", delay_s=0.2) as slow, cluster.worker("d1") as quick:
        slow.report(backlog=((0.0, 5.0),))
        draws = "  placement: {rule: random}\n"
        await _trial(cluster, slow, quick, policy_text(more=draws + TRIAL))
        await cluster.router.policy.look()  # at its next turn
        seen = await status(cluster)
        assert (seen.active.number, seen.active.name) == (1, "default")
        assert "its p95 of TTFT is 0." in seen.last_change


@pytest.mark.slow
async def test_a_canary_that_keeps_within_its_guards_takes_over(cluster: Cluster) -> None:
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        trial = TRIAL.replace("1h", "1ms").replace("}", ", guards: {maxErrorRatio: 1.5}}")
        await _trial(cluster, d0, d1, policy_text(3.0, more=trial))
        await cluster.router.policy.look()
        seen = await status(cluster)
        assert "took over: it kept within its guards" in seen.last_change
        assert seen.previous.number == 1
        placed = {each.number: each.placed for each in seen.traffic}
        assert 30 < placed[2] < 90
        assert placed[1] + placed[2] == 120


@pytest.mark.slow
async def test_a_session_stays_on_one_side_of_a_canary(cluster: Cluster) -> None:
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        await _trial(cluster, d0, d1, policy_text(3.0, more=TRIAL))
        records = cluster.router.placer.records
        sides: dict[str, set[int]] = {}
        for number in range(80):
            request_id, session = f"again-{number}", f"s{number % 40}"
            await cluster.generate(
                token_ids=PROMPT, session_key=session, stop={"max_tokens": 1}, request_id=request_id
            )
            record = records.find(request_id)
            assert record is not None
            sides.setdefault(session, set()).add(record.live.number)
        assert all(len(side) == 1 for side in sides.values())
        assert {number for side in sides.values() for number in side} == {1, 2}


async def test_a_request_that_was_refused_early_is_explained_too(cluster: Cluster) -> None:
    """It counts against the policy: a canary may not meet its targets by refusing."""
    await apply(cluster, policy_text(more="  admission: {rejectsEarly: true}\n"))
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        worker.report(backlog=((0.0, 500.0),))
        await cluster.until(lambda: _wait_s(cluster) > 0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cluster.generate(token_ids=PROMPT, request_id="r")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    told = await explain(cluster, "r")
    assert told.outcome.state == "failed"
    assert told.outcome.error == refused.value.details()
    [only] = told.tries
    assert only.candidates[0].decode == "d0"
    assert only.predicted_ttft_seconds > 400
    assert cluster.router.placer.generations.active.since_start.num_errors == 1


def _wait_s(cluster: Cluster) -> float:
    snapshot = cluster.router.pool.snapshot(cluster.router.clock())
    return sum(load.wait_s(snapshot.now) for load in snapshot.loads)
