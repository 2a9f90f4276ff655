"""Keys of callers, as tests write them down and show them."""

import json
from pathlib import Path
from typing import Any

from router.callers.key_file import ApiKey, hash_of, new_key

Metadata = tuple[tuple[str, str], ...]


def entry(key: str, tenant: str = "acme", **given: Any) -> dict[str, Any]:
    """A key as its file has it; its id is the tenant's name unless one is given."""
    return {"id": tenant, "tenant": tenant, "api_key_sha256": hash_of(key.encode()).hex(), **given}


def api_key(tenant: str = "acme", **given: Any) -> ApiKey:
    """One that nobody holds."""
    return ApiKey(**entry(new_key(), tenant, **given))


def write_keys(path: Path, *entries: dict[str, Any]) -> Path:
    """Replaces the file as `penstock keys` does: by another one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"keys": entries}))
    fresh.chmod(0o600)
    return fresh.replace(path)


def shown(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)
