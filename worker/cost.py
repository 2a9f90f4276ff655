"""Learns what a step costs on this worker from its own steps: the numbers in load reports.

Linear models with few coefficients, fitted online. Knows no clock and no engine; whoever ran a
step says what it was and how long it took.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.residuals import Residuals
from cluster.types import DecodeCost, ErrorQuantiles, PrefillCost

Vector = NDArray[np.float64]

_MIN_SECONDS = 1e-5
_MAX_SECONDS = 3600.0
_MIN_USUAL_ERROR = 0.02  # relative; no machine's steps are steadier
_MAX_UNUSUAL = 2  # in a row; more are not outliers
_NUM_GUESSES = 8  # steps before whose fit a prediction is a guess; their errors say nothing
_KEPT_AFTER_CHANGE = 0.1  # of what is known, when the machine turns out to be another
_SETUP_S, _S_PER_BYTE = 1e-3, 1e-9  # of a link of which nothing is known
Row = tuple[int, int]  # new tokens, context before them


class RecursiveLeastSquares:
    """y = coefficients · x, with what is old forgotten, and no coefficient below zero.

    Forgetting is directional (Cao and Schwartz 2000): only what a new observation speaks about
    loses weight. Steps that are all alike teach one direction and leave the others as they are,
    where plain forgetting would lose them and then blow up. Errors are relative, so that short
    steps count as much as long ones, and an outlier (a stopped process) is cut to `clip` times
    the usual error.
    """

    def __init__(
        self,
        initial: Sequence[float],
        scales: Sequence[float],
        *,
        forgetting: float = 0.98,
        prior_weight: float = 1e-2,
        clip: float = 4.0,
        keeps_proportions: bool = True,
    ) -> None:
        """With `keeps_proportions` the first observation scales all coefficients alike: the
        first guess is right about proportions at best, and the machine sets the speed."""
        self._scales: Vector = np.asarray(scales, dtype=np.float64)
        self._theta: Vector = np.asarray(initial, dtype=np.float64) / self._scales
        self._prior: NDArray[np.float64] = prior_weight * np.eye(len(initial))
        self._information = self._prior.copy()
        self._forgetting = forgetting
        self._clip = clip
        self._keeps_proportions = keeps_proportions
        self._usual_error = 1.0  # relative; learned
        self._num_unusual = 0  # in a row
        self._fitted: tuple[float, ...] | None = None
        self.num_observed = 0

    def observe(self, features: Sequence[float], seconds: float) -> None:
        raw = np.asarray(features, dtype=np.float64) * self._scales
        if not (0.0 < seconds < _MAX_SECONDS and np.all(np.isfinite(raw)) and np.any(raw)):
            return
        predicted = float(raw @ self._theta)
        if self._keeps_proportions and self.num_observed == 0 and predicted > 0.0:
            self._scales = self._scales * (seconds / predicted)
            raw, predicted = raw * (seconds / predicted), seconds
        unit = max(predicted, 0.5 * seconds, _MIN_SECONDS)
        x = raw / unit
        error = self._clipped((seconds - predicted) / unit)
        self._forget(x)
        self._information += np.outer(x, x)
        self._theta = self._theta + np.linalg.solve(self._information, x * error)
        self.num_observed += 1
        self._fitted = None

    def coefficients(self) -> tuple[float, ...]:
        """The best coefficients none of which is negative."""
        if self._fitted is None:
            self._fitted = self._fit_without_negatives()
        return self._fitted

    def _fit_without_negatives(self) -> tuple[float, ...]:
        theta = self._theta.copy()
        free = np.ones(len(theta), dtype=bool)
        while free.any() and theta[free].min() < 0.0:
            free &= theta >= 0.0
            target = self._information @ self._theta
            theta = np.zeros_like(theta)
            if free.any():
                theta[free] = np.linalg.solve(self._information[np.ix_(free, free)], target[free])
        return tuple(float(value) for value in np.maximum(theta, 0.0) * self._scales)

    def _clipped(self, error: float) -> float:
        """The error, cut if it is unusual; several unusual ones in a row are a new truth."""
        limit = self._clip * self._usual_error
        clipped = min(max(error, -limit), limit)
        self._usual_error += 0.05 * (min(abs(error), 2 * limit) - self._usual_error)
        self._usual_error = max(self._usual_error, _MIN_USUAL_ERROR)
        self._num_unusual = self._num_unusual + 1 if clipped != error else 0
        if self._num_unusual > _MAX_UNUSUAL:
            self._num_unusual = 0
            self._usual_error = abs(error)
            # Down to the prior, not to nothing: no later step may speak of what was known before.
            kept = _KEPT_AFTER_CHANGE
            self._information = kept * self._information + (1 - kept) * self._prior
            return error
        return clipped

    def _forget(self, x: Vector) -> None:
        seen = self._information @ x
        weight = float(x @ seen)
        if weight > 0.0:
            self._information -= (1.0 - self._forgetting) / weight * np.outer(seen, seen)


class PrefillCostModel:
    """Seconds of a prefill step from its new tokens and the context before them."""

    def __init__(self, initial: PrefillCost = PrefillCost(c0=5e-3, c1=2e-4)) -> None:  # noqa: B008 - frozen
        self._fit = RecursiveLeastSquares(
            (initial.c0, initial.c1, initial.c2, initial.c3), scales=(5e-3, 1e-4, 1e-6, 1e-7)
        )

    def observe(self, num_new: int, num_context: int, seconds: float) -> None:
        self.observe_rows(((num_new, num_context),), seconds)

    def observe_rows(self, rows: Iterable[Row], seconds: float) -> None:
        """A step of several prompts: (new tokens, context before them) of each."""
        new = context = product = 0
        for num_new, num_context in rows:
            new += num_new
            context += num_context
            product += num_new * num_context
        self._fit.observe((1.0, new, context, product), seconds)

    @property
    def is_guessing(self) -> bool:
        return self._fit.num_observed < _NUM_GUESSES

    def cost(self) -> PrefillCost:
        c0, c1, c2, c3 = self._fit.coefficients()
        return PrefillCost(c0=c0, c1=c1, c2=c2, c3=c3)


class DecodeCostModel:
    """Seconds of a decode step from its batch and the tokens of context in it."""

    def __init__(self, initial: DecodeCost = DecodeCost(d0=5e-3, d1=1e-7, d2=5e-4)) -> None:  # noqa: B008 - frozen
        self._fit = RecursiveLeastSquares(
            (initial.d0, initial.d1, initial.d2), scales=(5e-3, 1e-6, 1e-3)
        )

    def observe(self, num_context: int, batch: int, seconds: float) -> None:
        self._fit.observe((1.0, num_context, batch), seconds)

    @property
    def is_guessing(self) -> bool:
        return self._fit.num_observed < _NUM_GUESSES

    def cost(self) -> DecodeCost:
        d0, d1, d2 = self._fit.coefficients()
        return DecodeCost(d0=d0, d1=d1, d2=d2)


class LinkCostModel:
    """Seconds of a transfer from its bytes. The first transfer is taken to be mostly setting up;
    others, of other sizes, tell what is what."""

    def __init__(self) -> None:
        self._fit = _link_fit(_SETUP_S)

    def observe(self, num_bytes: int, seconds: float) -> None:
        if self._fit.num_observed == 0:
            setup_s = max(seconds - _S_PER_BYTE * num_bytes, seconds / 4)
            self._fit = _link_fit(max(setup_s, _MIN_SECONDS))
        self._fit.observe((1.0, num_bytes), seconds)

    def observe_bytes(self, num_bytes: int, seconds: float) -> None:
        """Learns from a transfer whose setting up is not in `seconds`."""
        self._fit.observe((0.0, num_bytes), seconds)

    @property
    def setup_s(self) -> float:
        return max(self._fit.coefficients()[0], _MIN_SECONDS)  # nothing is for free

    @property
    def s_per_byte(self) -> float:
        return self._fit.coefficients()[1]


def _link_fit(setup_s: float) -> RecursiveLeastSquares:
    # The prior is as strong as it takes for two noisy transfers of a few KiB not to say much about
    # the cost of a byte, and as weak that links of 10 MB/s to 20 GB/s are known after some ten.
    return RecursiveLeastSquares(
        (setup_s, _S_PER_BYTE), scales=(setup_s, 1e-8), prior_weight=3e-2, keeps_proportions=False
    )


class StepCost:
    """Fits what one worker's steps cost while it works. Splits a mixed step in two."""

    def __init__(self) -> None:
        self._prefill = PrefillCostModel()
        self._decode = DecodeCostModel()
        self._prefill_residuals = Residuals()  # of steps that compute prompts, whole
        self._decode_residuals = Residuals()
        self.prefill = self._prefill.cost()
        self.decode = self._decode.cost()

    @property
    def prefill_error(self) -> ErrorQuantiles:
        return self._prefill_residuals.quantiles()

    @property
    def decode_error(self) -> ErrorQuantiles:
        return self._decode_residuals.quantiles()

    def predicted_s(self, prompts: Sequence[Row], decodes: Sequence[int]) -> float:
        """`prompts` are (new tokens, context before them), `decodes` the others' contexts."""
        seconds = 0.0
        if prompts:
            cost = self.prefill
            seconds += cost.c0 + sum(cost.seconds(*row) - cost.c0 for row in prompts)
        if decodes:
            seconds += self.decode.seconds(sum(decodes), len(decodes))
        return seconds

    def observe(self, prompts: Sequence[Row], decodes: Sequence[int], seconds: float) -> None:
        """A mixed step teaches only the prompts' part: what the decodes should have cost is
        known well, for most steps are decodes alone."""
        self._compare(prompts, decodes, seconds)
        if not prompts:
            self._decode.observe(sum(decodes), len(decodes), seconds)
            self.decode = self._decode.cost()
            return
        if decodes:
            seconds -= self.decode.seconds(sum(decodes), len(decodes))
        if seconds > 0:
            self._prefill.observe_rows(prompts, seconds)
            self.prefill = self._prefill.cost()

    def _compare(self, prompts: Sequence[Row], decodes: Sequence[int], seconds: float) -> None:
        if not (self._prefill if prompts else self._decode).is_guessing:
            residuals = self._prefill_residuals if prompts else self._decode_residuals
            residuals.add(seconds, self.predicted_s(prompts, decodes))
