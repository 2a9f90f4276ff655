"""A parameter of a request stands in the contract, and where it acts: nowhere else by hand."""

import re
from pathlib import Path
from typing import Any

import pytest

from penstock.v1 import worker_pb2
from router.front.field_rules import RULES

ROOT = Path(__file__).resolve().parents[2]
MADE = {"cluster/parameters.py", "penstock/request_fields.py"}  # of the contract, by scripts/proto
CONTRACT = {"proto/penstock/v1/inference.proto", "proto/penstock/v1/worker.proto"}
NAMES = [field.name for field in worker_pb2.ResolvedParams.DESCRIPTOR.fields]

# A field -> where it acts.
PLAIN = {
    "frequency_penalty": {"engine/sampling.py"},
    "presence_penalty": {"engine/sampling.py"},
    "include_stop_string": {"cluster/detokenizer.py"},
    "spaces_between_special_tokens": {"cluster/detokenizer.py"},
    # Their default is the checkpoint's generation config.
    "min_p": {"engine/drawing.py", "router/front/model_info.py"},
    "repetition_penalty": {"engine/sampling.py", "router/front/model_info.py"},
}
FIRST_FIELDS = 21  # that workers of every release know
# They read the contract, and know no parameter by name.
NAMELESS = ("cluster/params_codec.py", "router/front/field_rules.py", "penstock/request.py")
NAMELESS += ("router/http/contract.py",)


def spells(path: Path, name: str) -> bool:
    return re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")) is not None


def spelt_in(name: str, modules: list[Any]) -> set[str]:
    """Files of the request's path; checkpoints' own tables and benchmarks are none."""
    paths = {module.path.as_posix() for module in modules}
    ours = {
        path for path in paths if not path.startswith(("bench/", "shipped_model/", "penstock/cli/"))
    }
    ours -= {"cluster/checkpoint_keys.py", *MADE}
    return {path for path in ours | CONTRACT if spells(Path(path), name)}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_field_is_spelt_in_the_contract_and_where_it_acts(
    name: str, modules: list[Any]
) -> None:
    assert spelt_in(name, modules) == CONTRACT | PLAIN[name]


@pytest.mark.parametrize("path", NAMELESS)
def test_who_reads_the_contract_knows_no_field_by_name(path: str) -> None:
    known = {"sampling", "stop", "logprobs"}  # the parts of a request
    names = {*NAMES, *(rule.name for rule in RULES.values() if rule.part)} - known
    names -= {"token_ids"}  # a prompt, too
    assert [name for name in sorted(names) if spells(Path(path), name)] == []


def test_what_was_added_is_not_sent_where_nobody_asked_for_it() -> None:
    """Else workers of an older release refuse every request of a newer router."""
    added = [f for f in worker_pb2.ResolvedParams.DESCRIPTOR.fields if f.number > FIRST_FIELDS]
    defaults = {rule.name: rule.default for rule in RULES.values() if rule.default is not None}
    assert [field.name for field in added if defaults.get(field.name)] == []
