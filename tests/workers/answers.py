"""Prompts, requests for them, and the answers that the echo model gives alone."""

from cluster.types import ComputeRequest, GenerationParams, SamplingParams
from engine.batch import Batch, BatchRow
from engine.echo import EchoEngine, echo_layout
from engine.sequence import Sequence
from penstock.v1 import inference_pb2 as pb

VOCAB = 256


def expected(
    prompt: list[int], num: int, *, seed: int = 0, temperature: float = 0.0, choice: int = 0
) -> list[int]:
    """What the echo model answers, computed without cache, batch or cluster."""
    layout = echo_layout(num_blocks=64, block_size=16)
    sampling = SamplingParams(seed=seed, temperature=temperature)
    params = GenerationParams(sampling=sampling, max_tokens=num)
    request = ComputeRequest(request_id="r", prompt_ids=prompt, params=params, hash_key=b"")
    sequence = Sequence(request, choice=choice)
    sequence.block_table = list(range(64))  # type: ignore[arg-type]
    for _ in range(num):
        row = BatchRow(sequence=sequence, start=0, num_new=sequence.num_tokens, choices=(choice,))
        result = EchoEngine(layout, vocab_size=VOCAB).forward(Batch(rows=(row,)))
        sequence.output_ids.append(result[0].tokens[0].token_id)
    return sequence.output_ids


def greedy(prompt: list[int], num: int, **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=0.0),
        stop=pb.LengthAndStop(max_tokens=num, ignore_eos=True),
        **fields,  # type: ignore[arg-type]
    )


def prompt_of(number: int, length: int) -> list[int]:
    return [(number * 31 + i * 7) % VOCAB for i in range(length)]
