"""How fast the simulator is: `python -m bench.simulator_speed [--requests N]`.

100 workers, prompts of 1,000 tokens and answers of 100 on average, grains of 512. Processor
seconds of one core, for others may use the machine; what placing takes is told apart.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.machine import describe
from router.decision import Decision
from router.placer import Placer
from simulator.run import Simulation
from simulator.setting import Setting
from simulator.synthetic import shared_prefixes

NUM_PREFILL, NUM_DECODE = 40, 60
RATE = 500.0  # requests a second: half of the prefill workers' time
TARGET_S = 900.0  # a million requests
MILLION = 1_000_000


def run(num_requests: int) -> dict[str, Any]:
    """Figures of one simulation. The trace is made before the clock starts."""
    trace = shared_prefixes(
        num_requests=num_requests,
        rate=RATE,
        num_groups=500,
        prefix_tokens=512,
        own_tokens=488,
        output_tokens=100,
        grain=512,
    )
    simulation = Simulation(trace, Setting(num_prefill=NUM_PREFILL, num_decode=NUM_DECODE))
    with _placing() as placing:
        began_s = time.process_time()
        report = simulation.run()
        seconds = time.process_time() - began_s
    return {
        "requests": report.num_requests,
        "finished": report.num_finished,
        "prompt_tokens": report.num_prompt_tokens,
        "output_tokens": report.num_output_tokens,
        "simulated_s": report.duration_s,
        "cpu_s": seconds,
        "ms_a_request": 1e3 * seconds / num_requests,
        "ms_placing": 1e3 * sum(placing) / num_requests,
        "s_for_a_million": seconds / num_requests * MILLION,
    }


@contextmanager
def _placing() -> Iterator[list[float]]:
    """While it lasts, the seconds of each placement are put down."""
    spent: list[float] = []
    place = Placer.place

    def timed(*arguments: Any) -> Decision | None:
        began_s = time.process_time()
        decision = place(*arguments)
        spent.append(time.process_time() - began_s)
        return decision

    with patch.object(Placer, "place", timed):
        yield spent


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.simulator_speed", description=__doc__)
    parser.add_argument("--requests", type=int, default=MILLION)
    parser.add_argument("--json", type=Path, help="write the figures there")
    flags = parser.parse_args()
    print(describe(), file=sys.stderr)
    figures = run(flags.requests)
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):20}{value:>14,.3f}".rstrip("0").rstrip("."))
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["s_for_a_million"] <= TARGET_S else 1


if __name__ == "__main__":
    sys.exit(main())
