"""One traced request on its way through the modelled cluster, over all its tries."""

from cluster.types import WorkerId
from simulator.modelled_sequence import ModelledSequence
from simulator.trace import TraceRequest


class ModelledAnswer:
    """Begun by the router, grown by the decode worker that has it."""

    __slots__ = (
        "excluded",
        "first_s",
        "is_over",
        "last_s",
        "num_cached",
        "num_predicted",
        "num_tokens",
        "request_id",
        "traced",
    )

    def __init__(self, number: int, traced: TraceRequest) -> None:
        self.request_id = f"r{number}"
        self.traced = traced
        self.excluded: frozenset[WorkerId] = frozenset()
        self.num_predicted = 0  # prompt tokens that the router believes to be cached
        self.num_tokens = 0  # sent to the client
        self.num_cached = 0  # prompt tokens, as the first worker says
        self.first_s = 0.0  # when the client had its first token
        self.last_s = 0.0  # when the decode worker had its latest
        self.is_over = False

    @property
    def num_left(self) -> int:
        return self.traced.num_output_tokens - self.num_tokens

    def sequence(self, grain: int, owner: object, due_at: float) -> ModelledSequence:
        """Makes one for a worker to go on after what has been sent."""
        return ModelledSequence(
            self.request_id,
            self.traced,
            grain=grain,
            due_at=due_at,
            num_emitted=self.num_tokens,
            owner=owner,
        )
