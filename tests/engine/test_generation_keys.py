"""What generation_config.json says of an answer: its ids and its end are the reference's."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.limits import Limits
from cluster.tokenizer import Tokenizer
from cluster.types import GenerationParams
from penstock.v1 import inference_pb2 as pb
from router.front.model_info import ModelInfo
from router.front.validation import check_generate, resolve
from tests.engine.changed_checkpoints import PROMPT, written
from tests.engine.driver import Driver, make_engine, make_sequence

torch.set_num_threads(1)

VALUES: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.3, 0.7),
    "max_new_tokens": (5,),
    "max_length": (len(PROMPT) + 7, len(PROMPT) + 3),
    "eos_token_id": (1, [1, 9]),
    "temperature": (0.4,),
    "top_k": (3, 0),
    "top_p": (0.3,),
    "min_p": (0.2,),
    "pad_token_id": (2,),
    "num_beams": (1,),
    "use_cache": (False,),
}
CHANGES = [(key, value) for key, values in VALUES.items() for value in values]


def resolved(directory: Path, prompt: list[int]) -> GenerationParams:
    """What a request that says nothing but its prompt gets."""
    info = ModelInfo.load(directory, "m")
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt))
    given = check_generate(request, info, Limits())
    tokenizer = Tokenizer.load(directory)
    return resolve(given, prompt, tokenizer, info, Limits(), hash_key=b"").params


def ours(directory: Path, *, num: int) -> list[int]:
    params = resolved(directory, PROMPT)
    num = min(num, params.max_tokens)
    sampling = replace(params.sampling, stop_token_ids=())
    engine = make_engine(directory, num_blocks=16)
    [ids] = Driver(engine).run([make_sequence(PROMPT, sampling, max_tokens=num)])
    ends = [place for place, token in enumerate(ids) if token in params.sampling.stop_token_ids]
    return ids[: ends[0] + 1] if ends else ids


@torch.inference_mode()
def theirs(model: Any, *, num: int) -> list[int]:
    prompt = torch.tensor([PROMPT])
    config = model.generation_config
    is_bounded = config.max_length is not None or config.max_new_tokens is not None
    more = {} if is_bounded else {"max_new_tokens": num}
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **more)
    return [int(token) for token in output[0, len(PROMPT) :]]


PLAIN = {"do_sample": False, "eos_token_id": 1}
PLACES = ("generation_config.json", "config.json")
SINGLE = [{**PLAIN, key: value} for key, value in CHANGES]
PAIRS = [
    {**PLAIN, one: first, two: second}
    for (one, first), (two, second) in combinations(CHANGES, 2)
    if one != two
]


def compare(directory: Path, place: str, values: Mapping[str, Any]) -> None:
    """`place`: the file that says it; config.json does where there is no other."""
    in_config = values.items() if place == "config.json" else ()
    written(directory, "llama", *in_config)
    (directory / "generation_config.json").unlink()
    if place == "generation_config.json":
        (directory / place).write_text(json.dumps(values))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert ours(directory, num=12) == theirs(model, num=12), values


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_greedy_answer_and_its_end_are_the_reference_s(place: str, tmp_path: Path) -> None:
    for number, values in enumerate(SINGLE):
        compare(tmp_path / str(number), place, values)


@pytest.mark.prove
@pytest.mark.parametrize("place", PLACES)
def test_so_they_are_where_two_keys_are_given(place: str, tmp_path: Path) -> None:
    for number, values in enumerate(PAIRS):
        compare(tmp_path / str(number), place, values)
