"""What is wrong in a manifest for Kubernetes: unknown keys, wrong types, names that lead nowhere.

kuberay.schema.json describes, in our own words, the fields of KubeRay 1.6 and of Kubernetes that a
manifest of ours may use, and no others: the API server drops an unknown field without a word.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = json.loads(Path(__file__).with_name("kuberay.schema.json").read_text())


def faults(documents: list[dict[str, Any]]) -> list[str]:
    """Sentences, each with the place."""
    found = []
    for document in documents:
        kind = f"{document.get('kind')}"
        if kind not in SCHEMA["$defs"]:
            found.append(f"{kind}: no such kind is known here")
            continue
        schema = {**SCHEMA, "$ref": f"#/$defs/{kind}"}
        errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
        found += [f"{kind} {error.json_path}: {error.message}" for error in errors]
    return found or list(_loose_ends(documents))


def _loose_ends(documents: list[dict[str, Any]]) -> Iterator[str]:
    """What names something that is not there."""
    for name, pod in pods(documents):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{name}: no volume '{mount['name']}'"
    cluster, service = by_kind(documents, "RayCluster"), by_kind(documents, "Service")
    groups = {group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]}
    selector = service["spec"]["selector"]
    if selector["ray.io/group"] not in groups:
        yield f"Service: no group '{selector['ray.io/group']}'"
    if selector["ray.io/cluster"] != cluster["metadata"]["name"]:
        yield f"Service: no cluster '{selector['ray.io/cluster']}'"


def by_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(document for document in documents if document["kind"] == kind)


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What runs, by name."""
    cluster = by_kind(documents, "RayCluster")["spec"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    yield "job", by_kind(documents, "Job")["spec"]["template"]["spec"]
