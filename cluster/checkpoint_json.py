"""JSON files of a checkpoint directory, read with errors that say what to do."""

import json
from pathlib import Path
from typing import Any

from cluster.errors import CheckpointError


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """The file's object; empty where the file is absent and not required."""
    if not path.is_file():
        if required:
            raise CheckpointError(
                f"'{path.parent}' has no {path.name}: give the directory of a complete "
                "Hugging Face checkpoint."
            )
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read as JSON ({error}): it is truncated or damaged, copy it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' holds no JSON object: copy it again.")
    return content
