"""An answer's text: whole characters, nothing lost, nothing said twice, stop strings cut."""

import time
from collections.abc import Sequence
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.detokenizer import Detokenizer, whole_text
from cluster.tokenizer import Tokenizer
from tests.cluster.small_tokenizers import SPECIAL, small_tokenizer

FAMILIES = ("byte_level", "metaspace", "byte_fallback")
EXACT_FAMILIES = ("byte_level", "metaspace")  # for any ids; see the test of byte fallback

ids_lists = st.lists(st.integers(0, 599), max_size=60)
texts = st.text(st.characters(codec="utf-8"), max_size=60)
prose = st.text(st.sampled_from("stop STOP.\n  ▁é你🙂#"), max_size=60)


def streamed(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [detokenizer.push([token_id]).text for token_id in ids] + [detokenizer.finish()]


def grouped(ids: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    groups, start = [], 0
    for size in sizes:
        groups.append(ids[start : start + size])
        start += size
    return [*groups, ids[start:]]


@pytest.mark.parametrize("family", EXACT_FAMILIES)
@given(ids=ids_lists, skip=st.booleans())
def test_all_texts_together_are_the_text_of_all_ids(
    family: str, ids: list[int], skip: bool
) -> None:
    tokenizer = small_tokenizer(family)
    expected = tokenizer.decode_known(ids, skip_special_tokens=skip)
    assert "".join(streamed(Detokenizer(tokenizer, skip_special_tokens=skip), ids)) == expected


@pytest.mark.parametrize("family", FAMILIES)
@given(text=texts | prose, sizes=st.lists(st.integers(0, 5), max_size=20))
def test_any_text_comes_back_in_whole_characters_however_its_tokens_are_grouped(
    family: str, text: str, sizes: list[int]
) -> None:
    tokenizer = small_tokenizer(family)
    ids = tokenizer.encode(text, add_special_tokens=False)
    expected = tokenizer.decode(ids)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(group).text for group in grouped(ids, sizes)]
    assert "".join(pieces) + detokenizer.finish() == expected
    if "\ufffd" not in text and "\ufffd" not in expected:
        assert all("\ufffd" not in piece for piece in pieces)


@given(ids=ids_lists)
def test_byte_fallback_shows_every_character_that_its_bytes_spell(ids: list[int]) -> None:
    """The library replaces a whole run of byte tokens when one of them is wrong. A stream has
    sent the good ones by then; nothing else differs."""
    tokenizer = small_tokenizer("byte_fallback")
    shown = "".join(streamed(Detokenizer(tokenizer), ids))
    expected = tokenizer.decode_known(ids, skip_special_tokens=True)
    if "\ufffd" not in expected:
        assert shown == expected
    remaining = iter(shown)
    assert all(character in remaining for character in expected.replace("\ufffd", ""))


@pytest.mark.parametrize("family", FAMILIES)
@given(ids=ids_lists, sizes=st.lists(st.integers(0, 5), max_size=20), skip=st.booleans())
def test_a_text_that_is_asked_for_whole_is_the_one_that_streams(
    family: str, ids: list[int], sizes: list[int], skip: bool
) -> None:
    tokenizer = small_tokenizer(family)
    ids = [i for i in ids if i < tokenizer.vocab_size]
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    pieces = [detokenizer.push(group).text for group in grouped(ids, sizes)]
    shown = "".join(pieces) + detokenizer.finish()
    assert whole_text(tokenizer, ids, skip_special_tokens=skip) == shown


def test_good_bytes_beside_a_wrong_one_are_in_the_whole_text_too() -> None:
    tokenizer = small_tokenizer("byte_fallback")
    ids = [*(5 + byte for byte in "你".encode()), 5 + 0xFF]
    assert tokenizer.decode(ids) == "\ufffd" * 4
    assert whole_text(tokenizer, ids, skip_special_tokens=True) == "你\ufffd"


def test_a_wrong_byte_takes_back_no_character_that_was_shown() -> None:
    tokenizer = small_tokenizer("byte_fallback")
    [letter] = [i for i in range(tokenizer.vocab_size) if tokenizer.token(i) == "a"]
    ids = [*(5 + byte for byte in "你".encode()), 5 + 0xFF, letter]
    assert streamed(Detokenizer(tokenizer), ids) == ["", "", "你", "", "\ufffda", ""]


@given(ids=ids_lists)
def test_an_answer_that_continues_a_text_keeps_its_leading_space(ids: list[int]) -> None:
    tokenizer = small_tokenizer("metaspace")
    context = tokenizer.encode("The fox", add_special_tokens=False)
    expected = tokenizer.decode_known([*context, *ids], skip_special_tokens=True)
    detokenizer = Detokenizer(tokenizer, context=context)
    assert "The fox" + "".join(streamed(detokenizer, ids)) == expected


def test_a_character_of_four_bytes_comes_at_its_last_token() -> None:
    tokenizer = small_tokenizer("byte_fallback")
    ids = [5 + byte for byte in "🙂".encode()]
    assert streamed(Detokenizer(tokenizer), ids) == ["", "", "", "🙂", ""]


def test_half_a_character_at_the_end_is_shown_as_replaced() -> None:
    for family, first in (("byte_fallback", 5), ("byte_level", None)):
        tokenizer = small_tokenizer(family)
        lead = 5 + 0xF0 if first else tokenizer.encode("🙂", add_special_tokens=False)[0]
        assert streamed(Detokenizer(tokenizer), [lead]) == ["", "\ufffd"]


# Spaces between special tokens

some_special = st.lists(st.integers(0, 4) | st.integers(0, 599), max_size=40)


def joined(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """As Hugging Face's slow tokenizers join: each special token, and what lies between two."""
    runs: list[list[int]] = []
    for is_special, group in groupby(ids, key=tokenizer.special_token_ids.__contains__):
        run = list(group)
        runs += [[token_id] for token_id in run] if is_special else [run]
    texts = [tokenizer.decode_known(run, skip_special_tokens=False) for run in runs]
    return " ".join(filter(None, texts))


@pytest.mark.parametrize("family", EXACT_FAMILIES)
@given(ids=some_special, sizes=st.lists(st.integers(0, 5), max_size=20))
def test_special_tokens_stand_apart_however_the_tokens_are_grouped(
    family: str, ids: list[int], sizes: list[int]
) -> None:
    tokenizer = small_tokenizer(family)
    one_by_one, in_groups = (
        Detokenizer(tokenizer, skip_special_tokens=False, spaces_between_special_tokens=True)
        for _ in range(2)
    )
    shown = "".join(in_groups.push(group).text for group in grouped(ids, sizes))
    assert "".join(streamed(one_by_one, ids)) == joined(tokenizer, ids)
    assert shown + in_groups.finish() == joined(tokenizer, ids)


@pytest.mark.parametrize("family", FAMILIES)
@given(text=prose, sizes=st.lists(st.integers(0, 5), max_size=20))
def test_text_between_special_tokens_is_as_it_is_alone(
    family: str, text: str, sizes: list[int]
) -> None:
    tokenizer = small_tokenizer(family)
    user, end = (tokenizer.encode(each, add_special_tokens=False)[-1] for each in SPECIAL[2:0:-1])
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(
        tokenizer, skip_special_tokens=False, spaces_between_special_tokens=True
    )
    pieces = [detokenizer.push(group).text for group in grouped([user, *ids, end], sizes)]
    alone = tokenizer.decode(ids)
    expected = " ".join(filter(None, (SPECIAL[2], alone, SPECIAL[1])))
    assert "".join(pieces) + detokenizer.finish() == expected


@given(ids=some_special, family=st.sampled_from(FAMILIES))
def test_special_tokens_that_are_not_shown_change_nothing(family: str, ids: list[int]) -> None:
    tokenizer = small_tokenizer(family)
    spaced = streamed(Detokenizer(tokenizer, spaces_between_special_tokens=True), ids)
    assert spaced == streamed(Detokenizer(tokenizer), ids)


# Stop strings


def stop(strings: Sequence[str], text: str, **options: object) -> tuple[str, str | None, int]:
    tokenizer = small_tokenizer("byte_level")
    detokenizer = Detokenizer(tokenizer, stop_strings=strings, **options)  # type: ignore[arg-type]
    shown, num_tokens = "", 0
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        delta = detokenizer.push([token_id])
        shown, num_tokens = shown + delta.text, num_tokens + delta.num_tokens
        if delta.stop_string is not None:
            assert detokenizer.finish() == ""
            return shown, delta.stop_string, num_tokens
    return shown + detokenizer.finish(), None, num_tokens


def first_end(strings: Sequence[str], text: str) -> tuple[int, str] | None:
    """The reference: the match that ends first, and the longest of those."""
    for end in range(1, len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            return end, max(found, key=len)
    return None


@given(
    strings=st.lists(st.text("abAB ", min_size=1, max_size=4), max_size=4),
    text=st.text("abAB ", max_size=40),
    include=st.booleans(),
)
def test_the_stop_string_that_ends_first_wins_and_of_those_the_longest(
    strings: list[str], text: str, include: bool
) -> None:
    shown, matched, _ = stop(strings, text, include_stop_string=include)
    expected = first_end(strings, text)
    if expected is None:
        assert (shown, matched) == (text, None)
    else:
        end, string = expected
        assert matched == string
        assert shown == text[: end if include else end - len(string)]


@given(
    strings=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    text=st.text("ab", max_size=30),
)
def test_no_character_that_may_be_part_of_a_stop_string_is_shown(
    strings: list[str], text: str
) -> None:
    tokenizer = small_tokenizer("byte_level")
    detokenizer = Detokenizer(tokenizer, stop_strings=strings)
    shown, given = "", ""
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        given += tokenizer.decode([token_id])
        delta = detokenizer.push([token_id])
        shown += delta.text
        if delta.stop_string is not None:
            return
        suffixes = (given[start:] for start in range(len(given) + 1))
        held = next(s for s in suffixes if any(t.startswith(s) for t in strings))
        assert shown + held == given  # held back as much as must be, and no more


def test_a_stop_string_is_found_across_tokens_and_the_tokens_up_to_it_are_kept() -> None:
    shown, matched, num_tokens = stop(["\n\nUser:"], "It stops again.\n\nUser: more text")
    assert (shown, matched) == ("It stops again.", "\n\nUser:")
    tokenizer = small_tokenizer("byte_level")
    ids = tokenizer.encode("It stops again.\n\nUser: more text", add_special_tokens=False)
    assert tokenizer.decode(ids[:num_tokens]).endswith("User:")
    assert not tokenizer.decode(ids[: num_tokens - 1]).endswith("User:")


def test_tokens_after_a_stop_string_in_the_same_push_are_not_counted() -> None:
    tokenizer = small_tokenizer("byte_level")
    ids = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "abcdef"]
    delta = Detokenizer(tokenizer, stop_strings=["cd"]).push(ids)
    assert delta == ("ab", 4, "cd")


def test_nothing_matches_before_min_tokens() -> None:
    tokenizer = small_tokenizer("byte_level")
    ids = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "ab ab ab"]
    for min_tokens, expected in ((0, ("", 2)), (1, ("", 2)), (2, ("ab ", 5)), (5, ("ab ab ", 8))):
        detokenizer = Detokenizer(tokenizer, stop_strings=["ab"], min_tokens=min_tokens)
        delta = detokenizer.push(ids)
        assert (delta.text, delta.num_tokens) == expected, min_tokens
    # One that begins before and ends after counts.
    delta = Detokenizer(tokenizer, stop_strings=["ab"], min_tokens=4).push(ids)
    assert (delta.text, delta.num_tokens) == ("ab ", 5)


@given(text=prose, cut=st.integers(0, 40), strings=st.lists(prose.filter(bool), max_size=3))
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_continued_after_a_failure_says_what_the_first_attempt_would_have_said(
    family: str, text: str, cut: int, strings: list[str]
) -> None:
    tokenizer = small_tokenizer(family)
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole, first, second = (Detokenizer(tokenizer, stop_strings=strings) for _ in range(3))
    expected = whole.push(ids)
    sent = first.push(ids[:cut])
    if sent.stop_string is not None:
        return
    replayed = second.replay(ids[:cut])
    rest = second.push(ids[cut:])
    assert replayed.text == ""
    assert sent.text + rest.text + second.finish() == expected.text + whole.finish()
    assert rest.stop_string == expected.stop_string
    assert replayed.num_tokens + rest.num_tokens == expected.num_tokens


# Cost


def pathological(tokenizer: Tokenizer, family: str) -> dict[str, list[int]]:
    bad_byte = 5 + 0x80 if family == "byte_fallback" else 10
    return {
        "invalid bytes": [bad_byte] * 10_000,
        "special tokens": [2] * 10_000,
        "no such token": [9_999] * 10_000,
        "prose": tokenizer.encode("It stops, then it stops again. " * 1500)[:10_000],
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand_tokens_cost_ten_times_a_thousand(family: str) -> None:
    tokenizer = small_tokenizer(family)
    for name, ids in pathological(tokenizer, family).items():
        seconds = []
        for num_tokens in (1_000, 10_000):
            detokenizer = Detokenizer(
                tokenizer, stop_strings=["again and", "\n\n"], skip_special_tokens=False
            )
            begin = time.thread_time()
            detokenizer.push(ids[:num_tokens])
            seconds.append(time.thread_time() - begin)
        # A quadratic one costs a hundred times as much.
        assert seconds[1] < 40 * seconds[0] + 0.05, (name, seconds)


@settings(max_examples=20)
@given(ids=st.lists(st.integers(5, 260), min_size=60, max_size=200))
def test_a_long_run_of_wrong_bytes_is_shown_while_it_goes_on(ids: list[int]) -> None:
    tokenizer = small_tokenizer("byte_fallback")
    detokenizer = Detokenizer(tokenizer)
    wrong = [5 + 0xFF] * 30
    assert detokenizer.push(wrong).text
    detokenizer.push(ids)
    assert isinstance(detokenizer.finish(), str)
