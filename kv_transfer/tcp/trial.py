"""Finds the fastest framing on the way to a peer, by trial: bytes that the receiver drops.

It is asked when a pair is made, once for all peers that are reached alike. Where the network is
what limits, framing is nothing, and nothing is asked.
"""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future

from cluster.errors import TransferFailed
from cluster.measurements import Measurements, Timings
from kv_transfer.tcp.frame import FRAME_BYTES, Framing
from kv_transfer.transport import Landed

TRIAL_BYTES = 4 << 20  # in one write: as many as all streams are used for
LIMIT_S = 0.08  # for all of it
NUM_ROUNDS = 6
SLOW_S = 0.02  # for one trial: the network, or a machine with other work
ANSWER_S = 2.0  # then something is wrong, which is not ours to find out
KIB = 1024

Try = Callable[[Framing, int], "Future[Landed]"]

FRAMINGS = [
    Framing(frame_bytes, splits)
    for frame_bytes in (FRAME_BYTES, FRAME_BYTES // 2, FRAME_BYTES // 4, FRAME_BYTES // 8)
    for splits in (True, False)
]


def choose_framing(try_one: Try, kind: str, measurements: Measurements) -> Framing:
    """`kind` says how the peer is reached. Under 100 ms, unless it is remembered."""
    try:
        if _seconds(try_one, Framing()) > SLOW_S:
            return Framing()
        take = measurements.take(f"KV over TCP, {kind}", lambda: time_framings(try_one), turn_s=0.0)
    except (TransferFailed, TimeoutError):  # it is not there, or knows no trials
        return Framing()
    framing = best_framing(take.seconds) if take.is_final else Framing()
    measurements.choices[f"KV over TCP ({kind})"] = told(framing)
    return framing


def best_framing(seconds: Timings) -> Framing:
    known = {told(each): each for each in FRAMINGS}
    return known[min(known.keys() & seconds.keys(), key=lambda name: seconds[name][0])]


def told(framing: Framing) -> str:
    streams = "all streams" if framing.splits else "one stream"
    return f"frames of {framing.frame_bytes // KIB} KiB on {streams}"


def time_framings(try_one: Try) -> Timings:
    """The least seconds of each; all take turns. Raises TransferFailed or TimeoutError."""
    least: dict[str, list[float]] = {}
    until = time.perf_counter() + LIMIT_S
    for number, framing in itertools.product(range(NUM_ROUNDS), FRAMINGS):
        if number > 0 and time.perf_counter() > until:
            break
        name = told(framing)
        least[name] = [min(_seconds(try_one, framing), *least.get(name, [1e9]))]
    return least


def _seconds(try_one: Try, framing: Framing) -> float:
    return try_one(framing, TRIAL_BYTES).result(ANSWER_S).seconds
