"""Small tokenizers of the families that checkpoints have, trained here in milliseconds."""

import json
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cluster.tokenizer import Tokenizer

SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>")
CORPUS = [
    "The quick brown fox jumps over the lazy dog.  It stops, then it stops again.",
    "Stop words: STOP, stop, ###, \n\nUser: and </answer>.",
    "naïve café, Größe, señor, Привет мир, 你好世界, こんにちは, 🙂👩‍👩‍👧 ok",
    "def add(a, b):\n    return a + b\n",
] * 3


def byte_level_backend() -> tokenizers.Tokenizer:
    """As Llama 3, Qwen and GPT-2 have it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens(["<tool>", "naïve token"])  # added, not special
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend


def metaspace_backend() -> tokenizers.Tokenizer:
    """As Mistral's newer ones and T5 have it: Metaspace before and after."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_fallback_backend() -> tokenizers.Tokenizer:
    """As Llama 2 and the first Mistral have it: SentencePiece BPE with a token a byte."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=▁)(?=[^▁])"), "isolated")
    latin = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    trained.train_from_iterator(latin, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: position for position, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = trained.normalizer
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", *SPECIAL])
    return backend


BACKENDS = {
    "byte_level": byte_level_backend,
    "metaspace": metaspace_backend,
    "byte_fallback": byte_fallback_backend,
}


@cache
def small_tokenizer(family: str) -> Tokenizer:
    return Tokenizer(BACKENDS[family](), digest=family)


def save_checkpoint(
    directory: Path,
    family: str = "byte_level",
    *,
    config: dict[str, object] | None = None,
    tokenizer_config: dict[str, object] | None = None,
    generation_config: dict[str, object] | None = None,
) -> Path:
    """A directory with all the JSON that a served model has, and a tiny safetensors file."""
    backend = BACKENDS[family]()
    backend.save(str(directory / "tokenizer.json"))
    own = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "__type": "AddedToken"},
        "clean_up_tokenization_spaces": False,
    }
    files = {
        "config.json": {
            "model_type": "llama",
            "vocab_size": 512,
            "max_position_embeddings": 64,
            "eos_token_id": backend.token_to_id("</s>"),
            **(config or {}),
        },
        "tokenizer_config.json": own | (tokenizer_config or {}),
    }
    if generation_config is not None:
        files["generation_config.json"] = generation_config
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"abcd"
    (directory / "model.safetensors").write_bytes(weights)
    return directory
