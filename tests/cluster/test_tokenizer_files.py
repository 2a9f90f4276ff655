"""Whatever a tokenizer's files say: ids, text and roles are those of the installed reference."""

import json
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import logging

from cluster.chat_template import ChatTemplate
from cluster.checkpoint_review import review
from cluster.errors import CheckpointError, InvalidRequest
from cluster.tokenizer import Tokenizer
from cluster.types import ChatMessage
from tests.cluster.small_tokenizers import BACKENDS, save_checkpoint

logging.set_verbosity_error()

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
CLASSES = (
    None,
    "PreTrainedTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
)
TEXTS = (
    "The fox 1234 don't",
    " hi",
    "  two  spaces\n\n",
    "naïve 你好 🙂 e\u0301",
    "<|user|>hi</s>",
    "<|user|> hi</s> x <unk>",
    "",
    "a<tool>b <new> c<x> <|endoftext|>.",
)


def added(text: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": text, "special": False, **plain, **flags}


# One change each: of tokenizer_config.json, or of the file named.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "adds bos": {"add_bos_token": True},
    "adds no bos": {"add_bos_token": False},
    "adds eos": {"add_eos_token": True},
    "splits special tokens": {"split_special_tokens": True},
    "cleans up": {"clean_up_tokenization_spaces": True},
    "space before": {"add_prefix_space": True},
    "no space before": {"add_prefix_space": False},
    "legacy": {"legacy": True},
    "not legacy": {"legacy": False},
    "more tokens": {"additional_special_tokens": ["<x>", "<tool>"]},
    "extra tokens": {"extra_special_tokens": ["<x>"]},
    "named extra tokens": {"extra_special_tokens": {"img_token": "<x>"}},
    "a role of its own": {"img_token": "<x>"},
    "padding with a new token": {"pad_token": "<new>"},
    "padding with a known token": {"pad_token": "<tool>"},
    "another beginning": {"bos_token": "<new>"},
    "no end": {"eos_token": None},
    "another end": {"eos_token": "<|user|>"},
    "an added token": {"added_tokens_decoder": {"900": added("<new>", special=True)}},
    "another flag": {"added_tokens_decoder": {"7": added("<tool>", special=True)}},
    "swallowing": {"added_tokens_decoder": {"7": added("<tool>", lstrip=True, rstrip=True)}},
    "no added tokens": {"added_tokens_decoder": {}},
    "limits": {"model_max_length": 3, "truncation_side": "left", "padding_side": "left"},
    "two names": {"img_token": "<new>", "extra_special_tokens": {"img_token": "<x>"}},
    "a map": {"special_tokens_map.json": {"bos_token": "<|user|>", "pad_token": "<x>"}},
    "a map with objects": {"special_tokens_map.json": {"eos_token": added("<|user|>")}},
    "a map with more": {"special_tokens_map.json": {"additional_special_tokens": ["<x>"]}},
    "old added tokens": {"added_tokens.json": {"<new>": 430}},
}


def written(directory: Path, backend: str, family: str, *changes: Mapping[str, Any]) -> Path:
    directory.mkdir(parents=True)
    merged = {key: value for change in changes for key, value in change.items()}
    files = {key: merged.pop(key) for key in list(merged) if key.endswith((".json", ".model"))}
    config: dict[str, object] = {"model_type": family, "vocab_size": 1000}
    save_checkpoint(directory, backend, config=config, tokenizer_config=merged)
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def compare(directory: Path) -> None:
    """*Raises* CheckpointError where we do not serve it."""
    ours = Tokenizer.load(directory)
    reference = AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        for special in (True, False):
            ids = reference.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids, text
            for skip in (True, False):
                expected = reference.decode(ids, skip_special_tokens=skip)
                assert ours.decode(ids, skip_special_tokens=skip) == expected, text
    named = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ img_token }}|{{ unk_token }}"
    reference.chat_template = named
    expected = reference.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    (directory / "chat_template.jinja").write_text(named)
    assert ChatTemplate.load(directory).render([ChatMessage("user", "")]) == expected
    if reference.eos_token is not None:
        assert ours.end_token_ids[-1] == reference.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["byte_level", "byte_fallback"])
def test_a_class_of_tokenizers_brings_its_own_rules(
    backend: str, family: str, tmp_path: Path
) -> None:
    for name in CLASSES:
        compare(written(tmp_path / str(name), backend, family, {"tokenizer_class": name}))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_key_gives_the_reference_s_ids(change: str, tmp_path: Path) -> None:
    compare(written(tmp_path / "plain", "byte_level", "llama", CHANGES[change]))
    llama = {"tokenizer_class": "LlamaTokenizer"}
    compare(written(tmp_path / "llama", "byte_fallback", "llama", llama, CHANGES[change]))
    compare(written(tmp_path / "qwen", "byte_level", "qwen2", CHANGES[change]))


@pytest.mark.prove
@pytest.mark.parametrize(("one", "two"), list(combinations(CHANGES, 2)))
def test_changes_of_two_keys_give_the_reference_s_ids(one: str, two: str, tmp_path: Path) -> None:
    for number, (backend, family, name) in enumerate(
        [
            ("byte_level", "llama", "PreTrainedTokenizerFast"),
            ("byte_level", "qwen3", "Qwen2Tokenizer"),
            ("byte_fallback", "llama", "LlamaTokenizer"),
            ("byte_fallback", "mistral", "LlamaTokenizer"),
        ]
    ):
        both = (CHANGES[one], CHANGES[two], {"tokenizer_class": name})
        compare(written(tmp_path / str(number), backend, family, *both))


@pytest.mark.parametrize(
    ("backend", "change", "says"),
    [
        ("byte_level", {"tokenizer_class": "GemmaTokenizer"}, "PreTrainedTokenizerFast"),
        ("byte_level", {"tokenizer_class": 7}, "give a name"),
        ("metaspace", {"tokenizer_class": "LlamaTokenizer"}, "is Unigram"),
        ("metaspace", {"clean_up_tokenization_spaces": True}, "takes spaces out of answers"),
        ("byte_level", {"added_tokens_decoder": {"7": {"special": True}}}, "describes no token"),
    ],
)
def test_what_is_not_known_of_a_tokenizer_is_refused(
    backend: str, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    directory = written(tmp_path / "model", backend, "llama", change)
    with pytest.raises(CheckpointError, match=says):
        Tokenizer.load(directory)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, "'auto_map' in"),
        ({"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "'fast_tokenizer_files' in"),
        ({"fix_mistral_regex": True}, "'fix_mistral_regex' in"),
        ({"adapter_config.json": {}}, "'adapter_config.json' in"),
    ],
)
def test_a_key_or_file_that_is_not_followed_is_refused_by_name(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=says):
        review(written(tmp_path / "model", "byte_level", "llama", change))


def test_what_is_ignored_is_listed_with_what_it_is_for(tmp_path: Path) -> None:
    change = {"add_bos_token": True, "made_by": "me", "tokenizer.model": {}}
    found = review(written(tmp_path / "model", "byte_level", "llama", change))
    notes = {(note.file, key): note.why for note in found.ignored for key in note.keys}
    assert "post-processor" in notes["tokenizer_config.json", "add_bos_token"]
    assert "tokenizer.json" in notes["files", "tokenizer.model"]
    assert [(note.file, note.keys) for note in found.unknown] == [
        ("tokenizer_config.json", ("made_by",))
    ]


# Chat templates


def _in_config(directory: Path, template: object) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def _additional(directory: Path, name: str) -> None:
    (directory / "additional_chat_templates").mkdir(exist_ok=True)
    (directory / "additional_chat_templates" / f"{name}.jinja").write_text(f"{name} of the folder")


TEMPLATES: Mapping[str, Callable[[Path], object]] = {
    "in the config": lambda d: _in_config(d, "config"),
    "named in the config": lambda d: _in_config(
        d, [{"name": "default", "template": "named"}, {"name": "tool_use", "template": "tools"}]
    ),
    "a file": lambda d: (d / "chat_template.jinja").write_text("file"),
    "a tool's in the folder": lambda d: _additional(d, "tool_use"),
    "the default in the folder": lambda d: _additional(d, "default"),
    "of a processor": lambda d: (d / "chat_template.json").write_text('{"chat_template": "p"}'),
}


@pytest.mark.parametrize("num", [1, 2, 3])
def test_of_several_chat_templates_the_reference_s_is_taken(num: int, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    for number, names in enumerate(combinations(TEMPLATES, num)):
        directory = written(tmp_path / str(number), "byte_level", "llama")
        for name in names:
            TEMPLATES[name](directory)
        template = ChatTemplate.load(directory)
        try:
            expected = AutoTokenizer.from_pretrained(directory).apply_chat_template(
                chat, tokenize=False
            )
        except ValueError:  # several, and none is the default; or none at all
            with pytest.raises(InvalidRequest, match="no chat template"):
                template.render([ChatMessage("user", "hi")])
        else:
            assert template.render([ChatMessage("user", "hi")]) == expected, names


def test_every_backend_is_tried() -> None:
    assert {"byte_level", "byte_fallback", "metaspace"} == set(BACKENDS)
