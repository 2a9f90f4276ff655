"""The reference says what the code does: each key with its default, and examples that hold."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.document.keys import key_of, keys_of, to_file
from cluster.strict_yaml import parse_yaml
from penstock.cli.findings import review
from router.policy_file.document import PlacementSpec, PolicySpec, ShadowSpec
from router.policy_file.kind import POLICY
from router.policy_settings import (
    AdmissionRules,
    CanarySettings,
    Guards,
    QueueOrder,
    ServiceClass,
    SessionAffinity,
    TenantShare,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text()
SECTIONS = {
    "classes": ServiceClass,
    "tenants": TenantShare,
    "queue": QueueOrder,
    "admission": AdmissionRules,
    "sessions": SessionAffinity,
    "placement": PlacementSpec,
    "shadow": ShadowSpec,
    "canary": CanarySettings,
}
# Defaults that are told in words.
WORDS = {"required", "of the rule", "both"}


def rows(text: str) -> dict[str, tuple[str, str]]:
    """The tables of a part of the page: key -> (default, meaning)."""
    found = re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \| (.*) \|$", text, re.MULTILINE)
    return {key: (default, meaning) for key, default, meaning in found}


def section(name: str) -> str:
    found = re.search(rf"^### `{name}`.*?(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/policy.md has no section '{name}'"
    return found[0]


@pytest.mark.parametrize(("name", "settings"), SECTIONS.items(), ids=SECTIONS)
def test_every_key_is_told_with_its_default_and_meaning(name: str, settings: type) -> None:
    told = rows(section(name))
    sections = (settings, Guards) if name == "canary" else (settings,)
    assert list(told) == [key.name for section in sections for key in keys_of(section)]
    defaults, meanings = defaults_of(settings), meanings_of(*sections)
    for key, (default, meaning) in told.items():
        assert meaning == meanings[key]
        if default not in WORDS:
            assert default == shown(defaults[key]), key


def defaults_of(settings: type) -> dict[str, Any]:
    required = [key.field for key in keys_of(settings) if key.is_required]
    values = {"name": "a", "spec": PolicySpec()}
    defaults: dict[str, Any] = to_file(settings(**{field: values[field] for field in required}))
    return defaults | defaults.get("guards", {})


def meanings_of(*sections: type) -> dict[str, str]:
    return {
        key_of(field.name): field.metadata["meaning"]
        for section in sections
        for field in dataclasses.fields(section)
    }


def shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def test_every_section_is_told_in_the_order_of_the_file() -> None:
    told = re.findall(r"^### `(\w+)`", PAGE, re.MULTILINE)
    keys = [key.name for key in keys_of(PolicySpec) if key.name != "defaultClass"]
    assert told == keys == list(SECTIONS)


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_every_example_is_a_file_that_check_accepts(text: str) -> None:
    assert parse_yaml(text, source="the example")["spec"]
    assert review(POLICY, text, "the example").findings == ()
