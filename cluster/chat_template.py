"""Chat messages to the text a model was trained on, by the checkpoint's own Jinja template.

A template is code of a stranger: it runs sandboxed, sees strings only, and its output is
bounded. It renders what `transformers` renders; knows no tokenizer and no limits of requests.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Self

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.checkpoint_config import read_json
from cluster.errors import CheckpointError, InvalidRequest
from cluster.model_digest import text_digest
from cluster.special_tokens import special_texts
from cluster.tokenizer_build import tokenizer_class
from cluster.types import ChatMessage

MAX_CHARS: Final = 16 << 20
NO_TEMPLATE: Final = (
    "This model has no chat template: send the prompt as text or as token ids instead."
)

# What a template's code may raise besides Jinja's own errors, with messages it did not expect.
_TEMPLATE_FAULTS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    def __init__(
        self,
        source: str | None,
        *,
        tokens: Mapping[str, str] | None = None,
        clock: Callable[[], datetime.datetime] = datetime.datetime.now,
        max_chars: int = MAX_CHARS,
    ) -> None:
        """`tokens` are the special tokens a template may name; without a `source` every
        rendering is refused."""
        self._tokens = dict(tokens or {})
        self._max_chars = max_chars
        self._template = None if source is None else _compiled(source, clock)
        self.digest: Final = text_digest(json.dumps([source, sorted(self._tokens.items())]))

    @classmethod
    def load(cls, checkpoint: Path, *, max_chars: int = MAX_CHARS) -> Self:
        tokens = special_texts(checkpoint, tokenizer_class(checkpoint))
        return cls(_source(checkpoint), tokens=tokens, max_chars=max_chars)

    @property
    def is_present(self) -> bool:
        return self._template is not None

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> str:
        if self._template is None:
            raise InvalidRequest("chat", NO_TEMPLATE)
        variables = {
            **self._tokens,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._bounded(self._template, variables)
        except _TEMPLATE_FAULTS as error:
            raise InvalidRequest(
                "chat", f"The model's chat template refuses these messages: {error}"
            ) from error

    def _bounded(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        pieces, num_chars = [], 0
        for piece in template.generate(variables):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > self._max_chars:
                raise InvalidRequest(
                    "chat",
                    f"The rendered chat has more than {self._max_chars} characters: "
                    "send fewer or shorter messages.",
                )
        return "".join(pieces)


def _source(checkpoint: Path) -> str | None:
    """The default template. Files of templates go before the tokenizer's config: where there is
    any, that one's are not read."""
    files = {"default": checkpoint / "chat_template.jinja"}
    more = sorted((checkpoint / "additional_chat_templates").glob("*.jinja"))
    files |= {path.name.removesuffix(".jinja"): path for path in more}
    named = {name: _read(path) for name, path in files.items() if path.is_file()}
    return named.get("default") if named else _configured(checkpoint / "tokenizer_config.json")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}): copy it again.") from error


def _configured(path: Path) -> str | None:
    source = read_json(path).get("chat_template")
    if isinstance(source, list):
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise CheckpointError(
            f"The chat_template of '{path}' is no text: give a template, or a list of named ones "
            "with 'default' among them."
        )
    return source


# The environment that templates are written for


def _compiled(source: str, clock: Callable[[], datetime.datetime]) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: clock().strftime(pattern)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise CheckpointError(
            f"The chat template does not compile ({error}): correct it, or remove it to serve "
            "text and token ids only."
        ) from error


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Dict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """Refuses names that lead into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a namespace may hold 'self'
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"A namespace cannot hold '{name}'.")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model is trained to say; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=lineno)
