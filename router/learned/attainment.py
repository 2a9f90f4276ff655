"""Counts how often the targets of each class were met, since the router started."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

_MAX_CLASSES: Final = 64  # classes of policies before this one are shown, too


@dataclass(slots=True, eq=False)
class ClassCounters:
    num_placed: int = 0
    num_rejected: int = 0  # at admission
    num_started: int = 0  # got a first token
    num_in_time: int = 0  # of these, within the target of TTFT
    num_finished: int = 0
    num_steady: int = 0  # of these, within the target of ITL on average


class Attainment:
    """Keeps counters by class, the least recently used first."""

    def __init__(self) -> None:
        self._classes: OrderedDict[str, ClassCounters] = OrderedDict()

    def of(self, name: str) -> ClassCounters:
        counters = self._classes.setdefault(name, ClassCounters())
        self._classes.move_to_end(name)
        if len(self._classes) > _MAX_CLASSES:
            self._classes.popitem(last=False)
        return counters

    def by_class(self) -> dict[str, ClassCounters]:
        return dict(sorted(self._classes.items()))
