"""Text to ids and back, as the reference library does it."""

import json
import sys
import threading
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from cluster.errors import CheckpointError, InvalidRequest
from cluster.tokenizer import Tokenizer
from tests.cluster.small_tokenizers import BACKENDS, byte_level_backend, save_checkpoint
from tests.cluster.small_tokenizers import small_tokenizer as small

SHIPPED = Path(__file__).parents[2] / "shipped_model" / "penstock-tiny"
TEXTS = ("The fox", "  two  spaces\n\n", "naïve 你好 🙂", "<|user|>hi</s>", "", "a<tool>b")


@pytest.mark.slow
@pytest.mark.parametrize("family", BACKENDS)
def test_ids_and_text_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint = save_checkpoint(tmp_path, family)
    reference = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer = Tokenizer.load(checkpoint)
    for text in TEXTS:
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == reference.encode(text, add_special_tokens=special)
            for skip in (True, False):
                expected = reference.decode(ids, skip_special_tokens=skip)
                assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


def test_the_shipped_tokenizer_gives_back_what_it_is_given() -> None:
    tokenizer = Tokenizer.load(SHIPPED)
    assert tokenizer.end_token_ids
    for text in TEXTS[:3]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(st.characters(codec="utf-8")))
def test_a_byte_level_token_is_its_bytes(text: str) -> None:
    tokenizer = small("byte_level")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_text_that_is_not_unicode_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode") as caught:
        small("byte_level").encode(text)
    assert caught.value.field == "text"


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback"])
@given(text=st.text(st.characters(codec="utf-8"), min_size=1) | st.text("stop.  ", min_size=1))
def test_a_text_has_no_fewer_tokens_than_its_bytes_allow(family: str, text: str) -> None:
    tokenizer = small(family)
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
    assert tokenizer.max_token_bytes is not None
    assert num_tokens * tokenizer.max_token_bytes >= len(text.encode())


def test_of_a_tokenizer_that_drops_text_no_such_thing_is_said() -> None:
    assert small("metaspace").max_token_bytes is None  # unknown characters share a token
    lowered, composed, stripping = (byte_level_backend() for _ in range(3))
    lowered.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    composed.normalizer = normalizers.NFC()
    stripping.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    assert Tokenizer(lowered, digest="").max_token_bytes is None
    assert Tokenizer(stripping, digest="").max_token_bytes is None
    plain = Tokenizer(byte_level_backend(), digest="").max_token_bytes
    assert plain is not None
    assert Tokenizer(composed, digest="").max_token_bytes == 4 * plain


def test_nothing_is_said_where_text_may_vanish_without_a_trace() -> None:
    emptied, unknown, partial = (byte_level_backend() for _ in range(3))
    emptied.normalizer = normalizers.Replace(" ", "")
    unknown.model = models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[1:]  # a byte without a token
    partial.model = models.BPE({letter: n for n, letter in enumerate(alphabet)}, [])
    for backend in (emptied, unknown, partial):
        assert Tokenizer(backend, digest="").max_token_bytes is None


def test_letters_that_composing_shortens_most_are_within_the_bound() -> None:
    backend = byte_level_backend()
    backend.normalizer = normalizers.NFC()
    backend.add_tokens(["\u0390" * 20])
    tokenizer, text = Tokenizer(backend, digest=""), "\u1fbe\u0308\u0301" * 100
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
    assert tokenizer.max_token_bytes is not None
    assert num_tokens * tokenizer.max_token_bytes >= len(text.encode())


@pytest.mark.prove
def test_no_text_is_more_than_four_times_what_it_is_composed_to() -> None:
    """A character comes of its parts, each of which the longest that means the same may spell."""
    every = [chr(n) for n in range(sys.maxunicode + 1) if not 0xD800 <= n <= 0xDFFF]
    longest: dict[str, int] = {}
    for character in every:
        parts = unicodedata.normalize("NFD", character)
        if len(parts) == 1:
            longest[parts] = max(longest.get(parts, 0), len(character.encode()))
    for character in every:
        parts = unicodedata.normalize("NFD", character)
        num_bytes = sum(longest.get(part, len(part.encode())) for part in parts)
        assert len(character.encode()) <= num_bytes
        if unicodedata.normalize("NFC", character) == character:
            assert num_bytes <= 4 * len(character.encode())


@pytest.mark.parametrize("token_id", [10_000, -1, 2**32, 2**63])
def test_an_id_out_of_the_vocabulary_is_refused_with_its_place(token_id: int) -> None:
    with pytest.raises(InvalidRequest, match="not in the vocabulary of") as caught:
        small("metaspace").decode([5, 6, token_id])
    assert caught.value.field == "token_ids[2]"


def test_a_truncation_that_the_checkpoint_carries_does_not_cut_prompts() -> None:
    backend = byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    assert len(Tokenizer(backend, digest="").encode("The quick brown fox " * 10)) > 40


def end_token_ids(directory: Path, **files: dict[str, object]) -> tuple[int, ...]:
    return Tokenizer.load(save_checkpoint(directory, **files)).end_token_ids  # type: ignore[arg-type]


def test_an_answer_ends_where_the_generation_config_says_and_at_the_tokenizers_end(
    tmp_path: Path,
) -> None:
    end = byte_level_backend().token_to_id("</s>")
    assert end_token_ids(tmp_path) == (end,)
    assert end_token_ids(tmp_path, config={"eos_token_id": 7}) == (7, end)
    assert end_token_ids(tmp_path, generation_config={"eos_token_id": [9, end]}) == (9, end)
    with pytest.raises(CheckpointError, match="eos_token_id"):
        end_token_ids(tmp_path, generation_config={"eos_token_id": ["</s>"]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has no readable tokenizer.json"),
        (b"", "is no tokenizer that this version reads"),
        (b'{"model": {', "is no tokenizer that this version reads"),
        (b"\x80\x04pickle", "is no tokenizer that this version reads"),
        (b'{"version": "1.0", "model": {"type": "Telepathy"}}', "is no tokenizer"),
    ],
)
def test_a_missing_or_damaged_file_is_refused_with_a_remedy(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert "save" in caught.value.message


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path) / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        Tokenizer.load(tmp_path)


def test_an_empty_vocabulary_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"] |= {"vocab": {}, "merges": []}
    content["added_tokens"] = []
    content["post_processor"] = None
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="empty vocabulary"):
        Tokenizer.load(tmp_path)


@pytest.mark.slow
def test_encoding_in_a_thread_leaves_the_interpreter_to_others() -> None:
    tokenizer, text = small("byte_level"), "the quick brown fox " * 100_000
    seconds: list[float] = []

    def encode() -> None:
        begin = time.perf_counter()
        tokenizer.encode(text)
        seconds.append(time.perf_counter() - begin)

    thread = threading.Thread(target=encode)
    thread.start()
    num_turns = 0
    while thread.is_alive():
        thread.join(0.001)
        num_turns += 1
    assert num_turns > 10 or seconds[0] < 0.05  # one, where the lock is held throughout
