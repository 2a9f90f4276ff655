"""The JSON Schema of policy files, in which each rule has its own parameters."""

from typing import Any

from cluster.document.schema import Schema, document_schema, schema_text, section_reference
from router.policies.registry import DEFAULT, RULES
from router.policy_file.document import PlacementSpec, PolicyDocument


def policy_schema() -> Schema:
    sections: dict[str, Schema] = {}
    whole = document_schema(PolicyDocument, "Penstock RoutingPolicy", sections)
    rules = [_rule_schema(name, rule, sections) for name, rule in RULES.items()]
    placement = sections[PlacementSpec.__name__]
    placement["properties"]["rule"]["enum"] = list(RULES)
    placement["allOf"] = rules
    return whole


def _rule_schema(name: str, rule: type[Any], sections: dict[str, Schema]) -> Schema:
    is_named: Schema = {"properties": {"rule": {"const": name}}}
    if name != DEFAULT:
        is_named["required"] = ["rule"]
    parameters = {"parameters": section_reference(rule, sections)}
    return {"if": is_named, "then": {"properties": parameters}}


if __name__ == "__main__":
    print(schema_text(policy_schema()), end="")
