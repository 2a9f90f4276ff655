"""Chats become the text that transformers makes of them; a template can do nothing else."""

import datetime
import json
from pathlib import Path

import pytest

from cluster.chat_template import ChatTemplate
from cluster.errors import CheckpointError, InvalidRequest
from cluster.types import ChatMessage
from tests.cluster.small_tokenizers import save_checkpoint

TEMPLATES = Path(__file__).parent / "templates"
SHIPPED = Path(__file__).parents[2] / "shipped_model" / "penstock-tiny"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# Roles and contents of chats.
CHATS = (
    (("user", "Hi"),),
    (("system", " Be brief.\n"), ("user", "What is <b>len</b>?  ")),
    (("user", 'Say "ä你🙂"'), ("assistant", "<think>hm</think>'Ok' & done"), ("user", "\n{{ 1 }}")),
    (("system", "A"), ("user", "b"), ("assistant", "c"), ("user", "d"), ("assistant", "e")),
    (("user", "b"), ("tool", '{"x": 1}'), ("tool", "2"), ("assistant", "c")),
)


def chat(*messages: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage(role, content) for role, content in messages]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_a_chat_becomes_the_text_that_transformers_makes_of_it(path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_checkpoint(tmp_path, tokenizer_config={"chat_template": path.read_text()})
    reference = AutoTokenizer.from_pretrained(tmp_path)
    template = ChatTemplate.load(tmp_path)
    num_refused = 0
    for messages in CHATS:
        for add in (True, False):
            dicts = [{"role": role, "content": content} for role, content in messages]
            try:
                expected = reference.apply_chat_template(
                    dicts, tokenize=False, add_generation_prompt=add
                )
            except Exception:
                num_refused += 1
                with pytest.raises(InvalidRequest, match="refuses these messages"):
                    template.render(chat(*messages), add_generation_prompt=add)
            else:
                assert template.render(chat(*messages), add_generation_prompt=add) == expected
    assert num_refused < 2 * len(CHATS)


def test_the_shipped_model_has_a_template_that_says_what_it_refuses() -> None:
    template = ChatTemplate.load(SHIPPED)
    assert "What is len?" in template.render(chat(("user", "What is len?")))
    with pytest.raises(InvalidRequest, match="Roles are system, user and assistant"):
        template.render(chat(("wizard", "hi")))


def test_without_a_template_a_chat_is_refused_with_the_way_out(tmp_path: Path) -> None:
    template = ChatTemplate.load(save_checkpoint(tmp_path))
    assert not template.is_present
    with pytest.raises(InvalidRequest, match="text or as token ids") as caught:
        template.render(chat(("user", "hi")))
    assert caught.value.field == "chat"


def test_of_named_templates_the_default_is_taken_and_a_file_goes_first(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    save_checkpoint(tmp_path, tokenizer_config={"chat_template": named})
    assert ChatTemplate.load(tmp_path).render(chat(("user", "hi"))) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.load(tmp_path).render(chat(("user", "hi"))) == "file"


@pytest.mark.parametrize(
    ("source", "says"),
    [("{% for %}", "does not compile"), (7, "is no text"), ({"a": "b"}, "is no text")],
)
def test_a_template_that_cannot_work_is_refused_at_start(
    source: object, says: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, tokenizer_config={"chat_template": source})
    with pytest.raises(CheckpointError, match=says):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ dict.fromkeys.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10000000) | list }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content + 'x' }}",
        "{{ none + 1 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_reaches_nothing_but_the_chat(source: str) -> None:
    template = ChatTemplate(source)
    with pytest.raises(InvalidRequest) as caught:
        template.render(chat(("user", "hi")))
    assert caught.value.field == "chat"


def test_a_rendering_is_bounded() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{{ messages[0].content }}{% endfor %}")
    with pytest.raises(InvalidRequest, match="send fewer or shorter"):
        template.render(chat(("user", "x" * 1000)))


def test_what_a_caller_writes_is_never_template_code() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    content = "{{ 7 * 7 }}{% raise %}<b>&amp;"
    assert template.render(chat(("user", content))) == content


def test_a_template_may_ask_for_the_date() -> None:
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y') }}", clock=lambda: datetime.datetime(2026, 7, 26)
    )
    assert template.render(chat(("user", "hi"))) == "26 Jul 2026"


def test_the_digest_tells_templates_and_their_tokens_apart() -> None:
    digests = {
        ChatTemplate(None).digest,
        ChatTemplate("a").digest,
        ChatTemplate("b").digest,
        ChatTemplate("a", tokens=TOKENS).digest,
    }
    assert len(digests) == 4
    assert ChatTemplate("a", tokens=TOKENS).digest == ChatTemplate("a", tokens=TOKENS).digest


def test_a_damaged_tokenizer_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"})[:-3])
    with pytest.raises(CheckpointError, match="copy it again"):
        ChatTemplate.load(tmp_path)
