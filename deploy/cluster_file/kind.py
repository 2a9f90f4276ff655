"""The kind of documents that are clusters. As a program it prints their JSON Schema."""

from pathlib import Path
from typing import Final

from cluster.document.keys import to_file
from cluster.document.kind import DocumentKind
from cluster.document.schema import Schema, document_schema, schema_text
from cluster.types import Role
from deploy.cluster_file.document import (
    KIND,
    MAX_CLUSTER_BYTES,
    ClusterDocument,
    default_cluster,
)
from deploy.cluster_file.faults import faults
from deploy.cluster_file.review import risks

CLUSTER: Final = DocumentKind(
    name=KIND,
    noun="cluster",
    document=ClusterDocument,
    max_bytes=MAX_CLUSTER_BYTES,
    default=default_cluster,
    effective=to_file,
    faults=faults,
    risks=risks,
    stand_ins={"name": "unnamed", "role": str(Role.DECODE)},
    schema=Path(__file__).with_name("cluster.schema.json"),
)


def cluster_schema() -> Schema:
    return document_schema(ClusterDocument, "Penstock Cluster", {})


if __name__ == "__main__":
    print(schema_text(cluster_schema()), end="")
