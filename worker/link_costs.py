"""Learns what KV from each peer costs, where it arrives: reported, so that routers can tell a fetch
from near by from one from far away."""

from collections import OrderedDict

from cluster.types import MAX_LINKS, LinkCost, WorkerId
from worker.cost import LinkCostModel


class LinkCosts:
    """Owns a fitted model for each peer that KV came from; those used last, if they are many.
    A peer that starts again keeps its own."""

    def __init__(self) -> None:
        self._models: OrderedDict[WorkerId, LinkCostModel] = OrderedDict()

    def fetched(self, peer: WorkerId, num_bytes: int, seconds: float) -> None:
        """`seconds` from asking for them to having them, verified."""
        self._of(peer).observe(num_bytes, seconds)

    def handed_over(self, peer: WorkerId, num_bytes: int, seconds: float) -> None:
        """`seconds` of writing and checking alone: setting up passed while the prompt was
        computed."""
        self._of(peer).observe_bytes(num_bytes, seconds)

    def reports(self) -> tuple[LinkCost, ...]:
        """Reports them in order of their names."""
        return tuple(
            LinkCost(peer=peer, setup_s=model.setup_s, s_per_byte=model.s_per_byte)
            for peer, model in sorted(self._models.items())
        )

    def _of(self, peer: WorkerId) -> LinkCostModel:
        model = self._models.get(peer)
        if model is None:
            model = self._models[peer] = LinkCostModel()
            while len(self._models) > MAX_LINKS:
                self._models.popitem(last=False)
        self._models.move_to_end(peer)
        return model
