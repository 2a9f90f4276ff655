"""Owns the tokenizer of penstock-tiny: byte-level BPE, its special tokens and its chat template.

`python -m shipped_model.tokenizer` trains it on the frozen corpus and writes `tokenizer.json` and
`tokenizer_config.json` in the layout that `transformers.AutoTokenizer` reads.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from shipped_model.corpus import FOLDER, Pair, load_corpus

MODEL_PATH: Final = FOLDER / "penstock-tiny"
VOCAB_SIZE: Final = 2_048
MODEL_MAX_LENGTH: Final = 2_048

BOS: Final = "<|bos|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SPECIAL_TOKENS: Final = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)

# About 50 tokens, so that any two questions share the first three blocks of sixteen.
DEFAULT_SYSTEM: Final = (
    "You are penstock-tiny, the small model that ships with Penstock. You answer questions "
    "about Python's builtins, about its standard library and about Penstock itself. "
    "You answer in one short sentence, exactly as you have learnt it, and you are polite."
)

CHAT_TEMPLATE: Final = (
    "{{- bos_token }}"
    "{%- if messages and messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}"
    "{%- else %}"
    "{%- set system = " + json.dumps(DEFAULT_SYSTEM) + " %}{%- set turns = messages %}"
    "{%- endif %}"
    "{{- '<|system|>' + system + '<|end|>' }}"
    "{%- for message in turns %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('Roles are system, user and assistant, not ' + message['role'] + '.') }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE over the texts; it encodes any UTF-8 and adds no token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """Gives what `transformers` wants to know beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MODEL_MAX_LENGTH,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "chat_template": CHAT_TEMPLATE,
    }


def training_texts(pairs: Sequence[Pair]) -> list[str]:
    """Every question and answer once, and the system prompt often enough to be short."""
    return [
        *[DEFAULT_SYSTEM] * 3,
        *(text for pair in pairs for text in (*pair.questions, pair.answer)),
    ]


def write_tokenizer(folder: Path = MODEL_PATH) -> None:
    """Train on the frozen corpus and write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(training_texts(load_corpus())).save(str(folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


def load_tokenizer(folder: Path = MODEL_PATH) -> Tokenizer:
    """The written tokenizer."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def chat_prefix(system: str = DEFAULT_SYSTEM) -> str:
    """The text in front of the first turn, as the chat template renders it."""
    return f"{BOS}{SYSTEM}{system}{END}"


if __name__ == "__main__":
    write_tokenizer()
    print(f"{MODEL_PATH.name}: {load_tokenizer().get_vocab_size()} tokens")
