"""The bids of a rule that prices in no seconds: whom it chooses is the only one to be had."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.load import Loads
from router.pair_costs import CANNOT
from router.policies.priced import Bids, Priced
from router.policies.rule import Prompt, Rule


def chosen_bids(
    rule: Rule[Any],
    prompt: Prompt,
    loads: Loads,
    barred: NDArray[np.bool_] | None,
    unfit: NDArray[np.bool_] | None,
    state: Any,
) -> tuple[Bids, Any]:
    """It chooses among the prefill workers that a way joins to some decode worker, or where there
    are none among the decode workers. `barred` [loads]: who may not compute the prompt; `unfit`
    [loads]: who cannot take the request; None: nobody."""
    paired = prompt.costs.paired(loads.num_prefill, unfit)
    allowed = np.flatnonzero(~barred) if barred is not None else np.arange(len(loads))
    kept = allowed[allowed < loads.num_prefill]
    if paired is not None:
        kept = kept[paired[kept]]
    kept = kept if len(kept) else allowed[allowed >= loads.num_prefill]
    of_kept = prompt._replace(
        cached=prompt.cached[kept],
        ready=prompt.ready[kept],
        costs=prompt.costs.among(kept),
        num_siblings=None if prompt.num_siblings is None else prompt.num_siblings[kept],
    )
    choice, state = rule.choose(of_kept, Loads([loads[i] for i in kept]), state)
    # The longest holder is the source of every rule that has one.
    bids = Priced(may_fetch=choice.source is not None).bids(prompt, loads, is_bounded=False)
    is_chosen = np.arange(len(loads)) == kept[choice.index]
    price_s = np.where(is_chosen, 0.0, CANNOT)
    is_fetched = None
    if bids.is_fetched is not None:
        is_fetched = is_chosen & prompt.costs.may_come_from(bids.holder)
    scores = dict(zip(kept.tolist(), choice.scores, strict=False))
    return bids._replace(price_s=price_s, is_fetched=is_fetched, scores=scores), state
