"""Words that an answer must not hold: their bounds, and how they become runs of tokens, as the
sampler knows them. As in vLLM, each is hidden as it is written and after a space.
"""

from collections.abc import Iterator, Sequence

from cluster.errors import InvalidRequest
from cluster.limits import Limits
from cluster.tokenizer import Tokenizer
from router.front.sampling_fields import check_texts

FIELD = "sampling.bad_words"


def check_bad_words(words: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """Each once, without the space that it may begin with: it is hidden with and without."""
    check_texts(words, FIELD, "bad word", limits.max_bad_words, limits.max_bad_word_bytes)
    stripped = [word.lstrip() for word in words]
    if "" in stripped:
        position = stripped.index("")
        raise InvalidRequest(
            f"{FIELD}[{position}]", "A bad word is nothing but space: name spaces by bad_token_ids."
        )
    return tuple(dict.fromkeys(stripped))


def bad_word_ids(
    words: Sequence[str], tokenizer: Tokenizer, vocab_size: int
) -> tuple[tuple[int, ...], ...]:
    """The runs of tokens that spell the words. Blocks for some 50 us a word. Raises
    InvalidRequest for a word that the tokenizer drops."""
    return tuple(dict.fromkeys(_runs(words, tokenizer, vocab_size)))


def _runs(words: Sequence[str], tokenizer: Tokenizer, vocab_size: int) -> Iterator[tuple[int, ...]]:
    for position, word in enumerate(words):
        # vLLM leaves out the second where it has more tokens than the first; but then it may end
        # in other tokens, and the word would slip through.
        for text in (word, f" {word}"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if not ids:
                raise InvalidRequest(
                    f"{FIELD}[{position}]",
                    "The model's tokenizer makes no tokens of a bad word: leave it out.",
                )
            if max(ids) < vocab_size:  # else the model never draws it
                yield tuple(ids)
