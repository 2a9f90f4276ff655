"""A checkpoint's tokenizer as the reference puts it together: tokenizer.json, or only its
vocabulary where the named class brings rules of its own, and the tokens that other files add.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from cluster.checkpoint_config import model_family, read_json
from cluster.errors import CheckpointError
from cluster.special_tokens import SpecialTokens, load_special_tokens, text_of

_QWEN2_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Classes that leave tokenizer.json as it is.
_PLAIN: Final = (None, "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")


class Built(NamedTuple):
    backend: tokenizers.Tokenizer
    special: SpecialTokens


def build_tokenizer(checkpoint: Path) -> Built:
    backend = _from_file(checkpoint / "tokenizer.json")
    settings = read_json(checkpoint / "tokenizer_config.json")
    name = tokenizer_class(checkpoint)
    if name is not None:
        backend = _rebuilt(checkpoint, name, backend, settings)
    special = load_special_tokens(checkpoint, name)
    _add(backend, special)
    if name == "Qwen2Tokenizer":
        texts = dict.fromkeys((*special.texts.values(), *map(text_of, special.extra)))
        backend.add_tokens([AddedToken(text, special=True) for text in texts])
    backend.encode_special_tokens = settings.get("split_special_tokens") is True
    _check_cleaning(checkpoint, settings, backend)
    return Built(backend, special)


def tokenizer_class(checkpoint: Path) -> str | None:
    """The class whose rules go before those of tokenizer.json; None: those are taken.

    *Raises* CheckpointError for a class whose rules are not known here.
    """
    config = read_json(checkpoint / "config.json")
    if not config:
        return None
    family = model_family(config, str(checkpoint / "config.json"))
    settings = read_json(checkpoint / "tokenizer_config.json")
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if named is not None and not isinstance(named, str):
        raise CheckpointError(f"'tokenizer_class' of '{checkpoint}' is {named!r}: give a name.")
    if family == "mistral":
        return None
    if family == "qwen2" or (family == "qwen3" and named is None):
        return "Qwen2Tokenizer"
    name = None if named is None else named.removesuffix("Fast")
    if name in _PLAIN or (name == "LlamaTokenizer" and _is_byte_level(checkpoint)):
        return None
    if name not in _RULES:
        raise CheckpointError(
            f"'{checkpoint}' names the tokenizer class {named!r}, whose rules are not known here. "
            "Set 'tokenizer_class' in its tokenizer_config.json to 'PreTrainedTokenizerFast', and "
            "tokenizer.json is taken as it is."
        )
    return name


def _is_byte_level(checkpoint: Path) -> bool:
    """Llama 3's, whose rules are never those of the class that it often names."""
    path = checkpoint / "tokenizer.json"
    return path.is_file() and b'"ByteLevel"' in path.read_bytes()


def _from_file(path: Path) -> tokenizers.Tokenizer:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"'{path.parent}' has no readable tokenizer.json ({error.strerror}): save the "
            "model's tokenizer there, in its fast version."
        ) from error
    try:
        backend = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(
            f"'{path}' is no tokenizer that this version reads ({error}): save it again with "
            "the fast version of the model's tokenizer."
        ) from error
    if not backend.get_vocab_size():
        raise CheckpointError(f"'{path}' has an empty vocabulary: copy it again.")
    return backend


# Rules of classes


def _rebuilt(
    checkpoint: Path, name: str, backend: tokenizers.Tokenizer, settings: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    model = read_json(checkpoint / "tokenizer.json")["model"]
    if not isinstance(backend.model, models.BPE):
        raise CheckpointError(
            f"'{checkpoint}' names {name}, which is BPE, but its tokenizer.json is "
            f"{type(backend.model).__name__}: set 'tokenizer_class' in tokenizer_config.json to "
            "'PreTrainedTokenizerFast'."
        )
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    rebuilt = _RULES[name](model["vocab"], merges, settings)
    if backend.post_processor is not None:
        rebuilt.post_processor = backend.post_processor
    return rebuilt


def _llama(
    vocab: dict[str, int], merges: list[Any], settings: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True)
    )
    has_space = settings.get("add_prefix_space") is not False
    scheme = "always" if settings.get("legacy") else "first"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme=scheme if has_space else "never", split=False
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_space:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _qwen2(
    vocab: dict[str, int], merges: list[Any], settings: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.normalizer = normalizers.NFC()
    has_space = bool(settings.get("add_prefix_space"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=has_space, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _gpt2(
    vocab: dict[str, int], merges: list[Any], settings: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    has_space = bool(settings.get("add_prefix_space"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_space)
    backend.decoder = decoders.ByteLevel()
    return backend


_Rules = Callable[[dict[str, int], list[Any], Mapping[str, Any]], tokenizers.Tokenizer]
_RULES: Final[Mapping[str, _Rules]] = {
    "LlamaTokenizer": _llama,
    "Qwen2Tokenizer": _qwen2,
    "GPT2Tokenizer": _gpt2,
}


# Tokens of other files


def _add(backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
    """All of them: one that the vocabulary has already gets the flags that it has here."""
    tokens = [token for _, token in sorted(special.added.items())]
    texts = {token.content for token in (*backend.get_added_tokens_decoder().values(), *tokens)}
    for token in (*special.named.values(), *special.extra):
        if text_of(token) not in texts:
            texts.add(text_of(token))
            tokens.append(
                token if isinstance(token, AddedToken) else AddedToken(token, special=True)
            )
    named = set(special.texts.values())
    for token in tokens:
        token.special = token.special or token.content in named
    backend.add_tokens(tokens)


def _check_cleaning(
    checkpoint: Path, settings: Mapping[str, Any], backend: tokenizers.Tokenizer
) -> None:
    if settings.get("clean_up_tokenization_spaces") and not isinstance(backend.model, models.BPE):
        raise CheckpointError(
            f"'clean_up_tokenization_spaces' in '{checkpoint / 'tokenizer_config.json'}' takes "
            "spaces out of answers, which is not done here: set it to false."
        )
