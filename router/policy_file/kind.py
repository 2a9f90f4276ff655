"""The kind of documents that are routing policies."""

from pathlib import Path
from typing import Final

from cluster.document.kind import DocumentKind
from router.policy_file.document import (
    KIND,
    MAX_POLICY_BYTES,
    PolicyDocument,
    default_document,
    effective,
)
from router.policy_file.review import risks

POLICY: Final = DocumentKind(
    name=KIND,
    noun="policy",
    document=PolicyDocument,
    max_bytes=MAX_POLICY_BYTES,
    default=default_document,
    effective=effective,
    risks=risks,
    schema=Path(__file__).with_name("policy.schema.json"),
)
