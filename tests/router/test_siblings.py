"""What waits behind a prefix is counted until its first token, and what was decided by it stays."""

from cluster.types import GrainHash, WorkerId
from router.explain import explain
from router.flight import Left
from router.siblings import Sibling, Siblings
from tests.router.holder_and_other import Cluster

A, B = WorkerId("a"), WorkerId("b")
GRAIN = GrainHash(bytes(16))


def test_who_ended_is_counted_no_more() -> None:
    siblings = Siblings()
    waiting: list[Sibling] = []
    for worker in (A, A, B):
        sibling = siblings.placed(GRAIN, worker)
        assert sibling is not None
        waiting.append(sibling)
        siblings.check(waiting)
    assert siblings.behind(GRAIN) == {A: 2, B: 1}
    while waiting:
        siblings.end(waiting.pop())
        siblings.check(waiting)
    assert siblings.behind(GRAIN) == {}
    assert siblings.placed(None, A) is None, "nobody shares what nobody holds"


def test_a_decision_is_explained_as_it_was_taken_whoever_is_placed_afterwards() -> None:
    """By the siblings of then: a shadow and hindsight rest on them, too."""
    cluster = Cluster()
    cluster.placer.records.budget_bytes = 1 << 20

    def told(number: int) -> str:
        record = cluster.placer.records.find(str(number))
        assert record is not None
        [attempt] = record.attempts
        return repr((attempt.request.num_siblings, explain(attempt)))

    at_once = []
    for number in range(6):
        cluster.place(number)
        at_once.append(told(number))
    assert [told(number) for number in range(6)] == at_once
    for number in range(6):
        cluster.placer.told(str(number), Left(), 0.0)
    assert [told(number) for number in range(6)] == at_once
