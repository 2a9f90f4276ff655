"""A checkpoint directory without a model: a tokenizer of single bytes, a chat template, headers."""

import json
import struct
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<end>"
VOCAB_SIZE = 257
CONTEXT_LENGTH = 512


def write_checkpoint(directory: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": CONTEXT_LENGTH,
        "eos_token_id": 256,
    }
    (directory / "config.json").write_text(json.dumps(config))
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    header = json.dumps({}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return directory
