"""What a worker reports about its speed before it has served anyone."""

from engine.echo import EchoEngine, echo_layout
from engine.warm_up import warm_up
from worker.cost import StepCost


def test_warm_up_teaches_both_costs_and_leaves_the_first_round_out() -> None:
    layout = echo_layout(num_blocks=16, block_size=16)
    timed = warm_up(EchoEngine(layout), layout, max_tokens=512)
    sizes = {batch.prompts[0][0] for batch, _ in timed if batch.prompts}
    assert len(sizes) == 3
    assert sum(bool(batch.decode_contexts) for batch, _ in timed) == 12
    cost = StepCost()
    for batch, seconds in timed:
        cost.observe(batch.prompts, batch.decode_contexts, seconds)
    assert cost.prefill.seconds(128, 0) > cost.prefill.seconds(16, 0) > 0
    assert cost.decode.seconds(100, 1) > 0


def test_warm_up_fits_the_smallest_pool() -> None:
    layout = echo_layout(num_blocks=1, block_size=8)
    assert warm_up(EchoEngine(layout), layout, max_tokens=512)
