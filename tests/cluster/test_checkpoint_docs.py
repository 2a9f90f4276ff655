"""The page on checkpoints names every key that does something or is refused."""

import re
from pathlib import Path

import pytest

from cluster.checkpoint_config import ARCHITECTURES
from cluster.checkpoint_keys import (
    GENERATION,
    ROPE_KINDS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    KeyFate,
    Table,
    config_table,
    rope_table,
)

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
TABLES: dict[str, Table] = {
    **{family: config_table(family, has_generation_config=True) for family in ARCHITECTURES},
    **{kind: rope_table(kind) for kind in ROPE_KINDS},
    "generation": GENERATION,
    "tokenizer": TOKENIZER,
    "special tokens": SPECIAL_TOKENS_MAP,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_key_that_is_not_ignored_is_on_the_page(name: str) -> None:
    named = set(re.findall(r"`([a-z0-9_]+)`", PAGE.read_text()))
    told = {key for key, rule in TABLES[name].items() if rule.fate is not KeyFate.IGNORED}
    assert told - named == set()
