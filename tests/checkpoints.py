"""Small random checkpoints of every family, made with `transformers`, which is the reference.

Each is built once a process, in a directory that goes away with it.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

logging.disable_progress_bar()

VOCAB_SIZE = 384
CONTEXT_LENGTH = 1024
END_TOKEN_ID = 1

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "bos_token_id": 0,
    "eos_token_id": END_TOKEN_ID,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 256,
}
_WINDOW = {"use_sliding_window": True, "sliding_window": 48}

# What each family is there to show; the first four are enough for a quick look.
FAMILIES: Mapping[str, tuple[type, Mapping[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "mistral": (MistralConfig, {"sliding_window": 40}),
    "llama-tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama-mqa": (LlamaConfig, {"num_key_value_heads": 1}),
    "llama-mha": (LlamaConfig, {"num_key_value_heads": 4}),
    "llama-biased": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama-dynamic": (
        LlamaConfig,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama3": (LlamaConfig, {"rope_parameters": _LLAMA3_ROPE, "head_dim": 24}),
    "llama-yarn": (LlamaConfig, {"rope_parameters": _YARN_ROPE}),
    "qwen2-tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-window": (Qwen2Config, {**_WINDOW, "max_window_layers": 1}),
    "qwen3-window": (
        Qwen3Config,
        {
            **_WINDOW,
            "head_dim": 20,
            "attention_bias": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mistral-full": (MistralConfig, {"sliding_window": None}),
    "mistral-mqa": (MistralConfig, {"sliding_window": 100, "num_key_value_heads": 1}),
}

_TEXT = (
    "A penstock is the gated pipe that carries water from the reservoir to the turbine. "
    "Prefill reads the prompt; decode emits tokens, one after the other. "
    "Größe, naïve, 水门, 🚰, and numbers like 3.14159 or 2026 are text too. "
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def checkpoint(family: str) -> Path:
    """A complete checkpoint directory of `family`: weights, config, tokenizer, template."""
    directory = _scratch() / family
    config_class, changes = FAMILIES[family]
    seed = sum(family.encode())
    write_checkpoint(directory, config_class(**{**_SHAPE, **changes}), seed=seed)
    return directory


def write_checkpoint(
    directory: Path, config: Any, *, seed: int = 0, max_shard_size: str = "1GB"
) -> None:
    """Random weights for `config`; norms and biases too, which are ones and zeros by default."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else noise * _spread(name, parameter))
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    write_tokenizer(directory)


def _spread(name: str, parameter: torch.Tensor) -> float:
    """Wide enough that the best token stands out and depends on the whole context."""
    if parameter.dim() == 1:
        return 0.3
    return 1.0 if "embed" in name or "head" in name else 1.5 / parameter.shape[1] ** 0.5


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE of at most VOCAB_SIZE tokens, with an end token and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": CONTEXT_LENGTH,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described, indent=1))


@cache
def reference(directory: Path) -> Any:
    """The reference model, float32, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.inference_mode()
def reference_logits(directory: Path, token_ids: Sequence[int]) -> torch.Tensor:
    """[num_tokens, vocab_size]: of the token after each."""
    logits = reference(directory)(input_ids=torch.tensor([list(token_ids)])).logits
    return logits[0]


@torch.inference_mode()
def reference_greedy(directory: Path, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
    """The tokens that the reference generates greedily, end tokens ignored."""
    output = reference(directory).generate(
        torch.tensor([list(prompt_ids)]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        eos_token_id=None,
    )
    return [int(token) for token in output[0, len(prompt_ids) :]]


@cache
def _scratch() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="penstock-checkpoints-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
