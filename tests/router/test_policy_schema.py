"""The schema that editors use says the same as the parser, as far as a schema can."""

import json

import jsonschema
import pytest

from cluster.document.schema import schema_text
from cluster.strict_yaml import parse_yaml
from router.policy_file.document import default_document, effective
from router.policy_file.kind import POLICY
from router.policy_file.schema import policy_schema
from tests.router.broken_policies import MISSHAPEN, SENSELESS, Broken
from tests.router.policy_texts import EVERYTHING

SCHEMA = jsonschema.Draft202012Validator(policy_schema())


def test_the_shipped_schema_is_what_the_code_makes() -> None:
    """If not: `python -m router.policy_file.schema > router/policy_file/policy.schema.json`."""
    assert POLICY.schema.read_text() == schema_text(policy_schema())
    SCHEMA.check_schema(json.loads(POLICY.schema.read_text()))


@pytest.mark.parametrize("text", [EVERYTHING, json.dumps(effective(default_document()))])
def test_the_schema_takes_what_the_parser_takes(text: str) -> None:
    SCHEMA.validate(parse_yaml(text, source="it"))


@pytest.mark.parametrize("broken", MISSHAPEN.values(), ids=MISSHAPEN)
def test_the_schema_refuses_what_has_a_wrong_shape(broken: Broken) -> None:
    assert not SCHEMA.is_valid(parse_yaml(broken.text, source="it"))


@pytest.mark.parametrize("broken", SENSELESS.values(), ids=SENSELESS)
def test_bounds_are_left_to_the_parser(broken: Broken) -> None:
    """Whoever tightens the schema moves these."""
    SCHEMA.validate(parse_yaml(broken.text, source="it"))
