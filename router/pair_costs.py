"""Says what moving KV between any two workers costs, frozen: seconds = setup + bytes x rate."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CANNOT = 1e18  # seconds; finite, so that nothing times it is not a number
_SAME = 0.1  # relative: costs this close to the known ones change nothing

Matrix = NDArray[np.float64]


class PairCosts(NamedTuple):
    """Float64 arrays [receiver, source], in the order of the loads. CANNOT: no way joins them."""

    setup_s: Matrix
    s_per_byte: Matrix
    least_setup_s: float = 0.0  # no pair has less
    least_s_per_byte: float = 0.0
    apart: NDArray[np.bool_] | None = None  # [receiver, source] whom no way joins; None: nobody

    @classmethod
    def uniform(cls, num_workers: int, setup_s: float, s_per_byte: float) -> "PairCosts":
        """The same for each pair; takes no memory."""
        shape = (num_workers, num_workers)
        setups, rates = np.broadcast_to(setup_s, shape), np.broadcast_to(s_per_byte, shape)
        return cls(setups, rates, setup_s, s_per_byte)

    def among(self, workers: NDArray[np.intp]) -> "PairCosts":
        """Gives the costs among these only, in their order."""
        pairs = np.ix_(workers, workers)
        apart = None if self.apart is None else self.apart[pairs]
        return PairCosts(self.setup_s[pairs], self.s_per_byte[pairs], apart=apart)

    def may_come_from(self, source: int) -> "NDArray[np.bool_] | bool":
        """[receivers] whether a way for KV joins them."""
        return True if self.apart is None else ~self.apart[:, source]

    def handed_apart(self, num_prefill: int) -> NDArray[np.bool_] | None:
        """[decode workers, prefill workers], which come first, whom no way joins; None: nobody."""
        return None if self.apart is None else self.apart[num_prefill:, :num_prefill]

    def paired(self, num_prefill: int, unfit: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """[prefill workers] that a way joins to a decode worker which is not `unfit` [workers];
        None: all."""
        if (apart := self.handed_apart(num_prefill)) is None:
            return None
        joined = ~apart if unfit is None else ~apart & ~unfit[num_prefill:, None]
        paired: NDArray[np.bool_] = joined.sum(axis=0) > 0
        return paired

    def seconds(self, receiver: int, source: int, num_bytes: float) -> float:
        setup_s, s_per_byte = self.setup_s[receiver, source], self.s_per_byte[receiver, source]
        return float(setup_s + s_per_byte * num_bytes)


class PairCostTable:
    """Costs as they become known; frozen on demand, which copies only what has really changed."""

    def __init__(
        self,
        num_workers: int,
        setup_s: float,
        s_per_byte: float,
        apart: NDArray[np.bool_] | None = None,
    ) -> None:
        """`apart` [receiver, source]: whom no way joins; None: nobody."""
        self._costs = PairCosts.uniform(num_workers, setup_s, s_per_byte)
        if apart is not None:
            setups = np.where(apart, CANNOT, setup_s)
            self._costs = self._costs._replace(setup_s=setups, apart=apart)
        self._is_frozen = True

    def put(self, receiver: int, source: int, setup_s: float, s_per_byte: float) -> None:
        costs, pair = self._costs, (receiver, source)
        if costs.apart is not None and costs.apart[pair]:
            return  # learned from an earlier life of the source
        if _is_same(costs.setup_s[pair], setup_s) and _is_same(costs.s_per_byte[pair], s_per_byte):
            return
        if self._is_frozen:
            setups, rates = costs.setup_s.copy(), costs.s_per_byte.copy()
            costs = costs._replace(setup_s=setups, s_per_byte=rates)
            self._is_frozen = False
        costs.setup_s[pair], costs.s_per_byte[pair] = setup_s, s_per_byte
        self._costs = costs._replace(
            least_setup_s=min(costs.least_setup_s, setup_s),
            least_s_per_byte=min(costs.least_s_per_byte, s_per_byte),
        )

    def freeze(self) -> PairCosts:
        self._is_frozen = True
        return self._costs


def _is_same(known: float, told: float) -> bool:
    return abs(told - known) <= _SAME * known
