"""Whatever config.json says: the logits and ids are the reference's, or a sentence refuses it.

The variations come from the table of keys itself, so that a key which is added there is tried here.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cluster.checkpoint_keys import KeyFate, config_table
from cluster.checkpoint_review import review
from cluster.errors import CheckpointError
from cluster.types import SamplingParams
from engine.checkpoint import load_spec
from engine.tensors import EMBEDDING, HEAD
from tests.engine.changed_checkpoints import ABSENT, PROMPT, Change, written
from tests.engine.driver import Driver, make_engine, make_sequence

torch.set_num_threads(1)

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
NUM_LAYERS = 3
FILE = "model.safetensors"
NUM_NEW = 8
LOGPROBS = SamplingParams(seed=0, temperature=0.0, num_prompt_logprobs=0)

FULL, SLIDING = "full_attention", "sliding_attention"
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_SCALINGS: tuple[Any, ...] = (
    None,
    {},
    LINEAR,
    {"type": "linear", "factor": 2.0, "finetuned": True},
    {"rope_type": "default", "type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0, "beta_fast": 3.0},
    {"rope_type": "dynamic", "factor": 3.0},
    LLAMA3,
    {**LLAMA3, "mscale": 2.0, "truncate": False},
    YARN,
    {**YARN, "finetuned": True, "attn_factor": 1.0},
    {**YARN, "attention_factor": 1.3},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4},
    {**YARN, "mscale": 0.7},
    {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {**YARN, "factor": None},
    {"rope_type": "yarn", "factor": 2.0},
)
VALUES: Mapping[str, tuple[Any, ...]] = {
    "rms_norm_eps": (1e-3, ABSENT),
    "hidden_act": ("swish", ABSENT),
    "head_dim": (None, ABSENT, 32),
    "max_position_embeddings": (100, ABSENT),
    "rope_theta": (77.0,),
    "rope_parameters": (ABSENT, {}, LINEAR, LLAMA3, YARN),
    "rope_scaling": _SCALINGS,
    "original_max_position_embeddings": (24,),
    "partial_rotary_factor": (1.0, None),
    "attention_bias": (False, ABSENT),
    "mlp_bias": (False, ABSENT),
    "tie_word_embeddings": (True, False, ABSENT),
    "architectures": (ABSENT,),
    "sliding_window": (None, 8, ABSENT),
    "use_sliding_window": (True, False, ABSENT),
    "max_window_layers": (0, 1, 2, ABSENT),
    "layer_types": (
        None,
        ABSENT,
        [FULL] * NUM_LAYERS,
        [SLIDING] * NUM_LAYERS,
        [SLIDING, "attention", SLIDING],
    ),
}
# What is not accepted, by us and mostly by the reference neither.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "partial_rotary_factor": (0.5,),
    "rope_scaling": (
        {"rope_type": "longrope", "factor": 2.0},
        {**LINEAR, "alpha": 3.0},
        {**YARN, "attn_factor": 2.0},
        {**LINEAR, "mrope_section": [2, 3, 3]},
    ),
    "model_type": ("gpt2",),
    "architectures": (["LlamaModel"], ["GemmaForCausalLM"]),
    "residual_multiplier": (0.5,),
    "head_dim": (15,),
    "layer_types": ([FULL], ["linear_attention"] * NUM_LAYERS),
}
# Of what is ignored: values that the reference accepts, or would act on if it read them.
IGNORED: Mapping[str, Any] = {
    "initializer_range": 0.9,
    "attention_dropout": 0.9,
    "pad_token_id": 3,
    "bos_token_id": 5,
    "use_cache": False,
    "pretraining_tp": 4,
    "num_labels": 5,
    "id2label": {"0": "a"},
    "label2id": {"a": 0},
    "problem_type": "regression",
    "dtype": "bfloat16",
    "torch_dtype": "float16",
    "transformers_version": "4.1.0",
    "chunk_size_feed_forward": 3,
    "output_hidden_states": True,
    "use_sliding_window": True,
    "attention_bias": True,
    "mlp_bias": True,
    "max_window_layers": 1,
    "auto_map": {"AutoModel": "modeling.Other"},
    "attn_implementation": "eager",
    "_attn_implementation": "eager",
    "pruned_heads": {"0": [1]},
    "assistant_ensemble_weight": 0.5,
    "cache_implementation": "dynamic",
}
# The reference stumbles over these itself.
NOT_TRIED = {"return_dict", "output_attentions", "_attn_implementation_internal"}
NOT_TRIED |= {"_experts_implementation", "_experts_implementation_internal"}
NOT_TRIED |= {"experts_implementation", "compile_config", "watermarking_config"}


def changes_of(family: str) -> list[Change]:
    """Every key that is honoured, with values that change something."""
    table = config_table(family, has_generation_config=True)
    return [
        (key, value)
        for key, values in VALUES.items()
        for value in values
        if key in table and (table[key].fate is not KeyFate.REFUSED or value in table[key].harmless)
    ]


def ours(directory: Path) -> tuple[list[int], torch.Tensor]:
    """Greedy ids, and the log-probability of each token of the prompt after the first."""
    driver = Driver(make_engine(directory, num_blocks=16), wants_prompt_logprobs=True)
    [ids] = driver.run([make_sequence(PROMPT, LOGPROBS, max_tokens=NUM_NEW)])
    return ids, torch.tensor([each.logprob for each in driver.prompt_logprobs[0]])


@torch.inference_mode()
def reference(directory: Path) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """The same, and how far the best logit is from the second at each greedy token."""
    with warnings.catch_warnings(action="ignore"):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    prompt = torch.tensor([PROMPT])
    logits = model(input_ids=prompt, return_dict=True).logits[0]
    logprobs = logits[:-1].log_softmax(-1).gather(1, prompt[0, 1:, None])[:, 0]
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NUM_NEW,
        min_new_tokens=NUM_NEW,
        eos_token_id=None,
        pad_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(output.logits).topk(2).values
    return output.sequences[0, len(PROMPT) :].tolist(), logprobs, best[:, 0] - best[:, 1]


def compare(directory: Path, family: str, *changes: Change) -> bool:
    """Whether both serve it; fails where the answers differ, or where only we refuse."""
    return served_alike(written(directory, family, *changes), changes)


def served_alike(directory: Path, changes: object) -> bool:
    try:
        ids, logprobs = ours(directory)
    except CheckpointError as error:
        if is_served_by_the_reference(directory):
            pytest.fail(f"{changes}: {error.message}")
        return False
    try:
        expected, expected_logprobs, margins = reference(directory)
    except Exception:  # nothing to compare with: what it stumbles over is no matter here
        return False
    assert (logprobs - expected_logprobs).abs().max() < 3e-4, changes
    for token, wanted, margin in zip(ids, expected, margins, strict=True):
        if margin < 1e-3:
            break
        assert token == wanted, changes
    return True


def is_served_by_the_reference(directory: Path) -> bool:
    try:
        reference(directory)
    except Exception:
        return False
    return True


def by_key(family: str) -> dict[str, list[Change]]:
    grouped: dict[str, list[Change]] = {}
    for change in changes_of(family):
        grouped.setdefault(change[0], []).append(change)
    return grouped


SINGLE = [(family, key) for family in FAMILIES for key in by_key(family)]
FIRST = {key: family for family, key in reversed(SINGLE)}  # that has it: the others in `make prove`
EACH_KEY = [
    pytest.param(family, key, marks=[] if FIRST[key] == family else pytest.mark.prove)
    for family, key in SINGLE
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "key"), EACH_KEY)
def test_a_change_of_one_key_gives_the_reference_s_answer(
    family: str, key: str, tmp_path: Path
) -> None:
    compared = [
        compare(tmp_path / str(number), family, change)
        for number, change in enumerate(by_key(family)[key])
    ]
    assert any(compared)


@pytest.mark.prove
@pytest.mark.parametrize(("family", "key"), SINGLE)
def test_changes_of_two_keys_give_the_reference_s_answer(
    family: str, key: str, tmp_path: Path
) -> None:
    keys = list(by_key(family))
    later = [change for other in keys[keys.index(key) + 1 :] for change in by_key(family)[other]]
    for number, (one, two) in enumerate(product(by_key(family)[key], later)):
        compare(tmp_path / str(number), family, one, two)
        shutil.rmtree(tmp_path / str(number))


def ignored_keys(family: str) -> dict[str, Any]:
    table = config_table(family, has_generation_config=True)
    names = {name for name, rule in table.items() if rule.fate is KeyFate.IGNORED} - NOT_TRIED
    return {name: IGNORED.get(name, 7) for name in sorted(names)}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_is_ignored_changes_nothing_with_the_reference_either(
    family: str, tmp_path: Path
) -> None:
    ignored = ignored_keys(family)
    assert compare(tmp_path / "model", family, *ignored.items())
    plain = ours(written(tmp_path / "plain", family))
    assert ours(tmp_path / "model")[0] == plain[0]
    found = review(tmp_path / "model")
    listed = {key for note in found.ignored if note.file == "config.json" for key in note.keys}
    assert listed == ignored.keys()
    assert found.unknown == ()


def refusals(family: str) -> Iterator[Change]:
    table = config_table(family, has_generation_config=False)
    for key, rule in table.items():
        if rule.fate is KeyFate.REFUSED:
            yield key, 3 if 3 not in rule.harmless else "x"
    yield from ((key, value) for key, values in REFUSED.items() for value in values)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_would_change_the_answer_is_refused_by_name(family: str, tmp_path: Path) -> None:
    for number, (key, value) in enumerate(refusals(family)):
        directory = written(tmp_path / str(number), family, (key, value))
        (directory / "generation_config.json").unlink()
        with pytest.raises(CheckpointError) as caught:
            load_spec(directory)
        inner = [*value, *value.values()] if isinstance(value, dict) else []
        assert any(f"'{name}'" in caught.value.message for name in (key, *inner)), key


@pytest.mark.parametrize("family", FAMILIES)
def test_harmless_values_of_what_is_refused_are_served(family: str, tmp_path: Path) -> None:
    table = config_table(family, has_generation_config=False)
    refused = {key: rule for key, rule in table.items() if rule.fate is KeyFate.REFUSED}
    for number in range(max(len(rule.harmless) for rule in refused.values())):
        values = {key: rule.harmless[number % len(rule.harmless)] for key, rule in refused.items()}
        load_spec(written(tmp_path / str(number), family, *values.items()))


def test_yarn_that_was_added_serves_what_is_beyond_the_old_length(tmp_path: Path) -> None:
    """As model cards advise: 'max_position_embeddings' stays as it was."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    changes = [("rope_scaling", yarn), ("max_position_embeddings", 32)]
    assert load_spec(written(tmp_path / "spec", "qwen2", *changes)).context_length == 128
    assert len(PROMPT) > 32
    assert compare(tmp_path / "model", "qwen2", *changes)


def changed_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    (directory / "model.safetensors").unlink()
    save_file({name: each.contiguous() for name, each in tensors.items()}, directory / FILE)
    return directory


WEIGHTS: Mapping[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "a head that differs": lambda t: t.update({HEAD: t[EMBEDDING] * -1}),
    "a head that is the embedding": lambda t: t.update({HEAD: t[EMBEDDING].clone()}),
    "only the embedding": lambda t: t.pop(HEAD, None),
    "only the head": lambda t: t.update({HEAD: t.pop(EMBEDDING)}),
    "half a digit": lambda t: t.update({n: each.bfloat16() for n, each in t.items()}),
    "derived buffers": lambda t: t.update({"model.rotary_emb.inv_freq": torch.ones(8)}),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weights_are_believed_whatever_is_said_of_tying(
    name: str, tied: bool, tmp_path: Path
) -> None:
    family = "llama-tied" if tied else "llama"
    directory = changed_weights(written(tmp_path / "model", family), WEIGHTS[name])
    if not tied and name.startswith("only"):  # the reference invents what is missing
        with pytest.raises(CheckpointError, match="lacks"):
            load_spec(directory)
    else:
        assert served_alike(directory, name)


@pytest.mark.parametrize("first", ["single", "index"])
def test_a_single_file_goes_before_an_index(first: str, tmp_path: Path) -> None:
    directory = written(tmp_path / "model", "llama")
    other = changed_weights(
        written(tmp_path / "other", "llama"), lambda t: t.update({HEAD: t[HEAD] * -1})
    )
    shutil.copy(other / FILE, directory / "model-00001.safetensors")
    names = load_file(other / FILE)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001.safetensors")}
    (directory / f"{FILE}.index.json").write_text(json.dumps(index))
    if first == "index":
        (directory / FILE).unlink()
    assert served_alike(directory, first)
    found = {note.keys for note in review(directory).ignored if note.file == "files"}
    assert found == ({(f"{FILE}.index.json",)} if first == "single" else set())


def test_an_unknown_key_is_told_apart_by_what_it_may_mean(tmp_path: Path) -> None:
    found = review(written(tmp_path / "a", "llama", ("made_by", "me"), ("num_experts", 0)))
    assert [note.keys for note in found.unknown] == [("made_by", "num_experts")]
    with pytest.raises(CheckpointError, match=r"'num_experts' in .* is 4: nobody here knows it"):
        review(written(tmp_path / "b", "llama", ("num_experts", 4)))
