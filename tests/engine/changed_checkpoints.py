"""A checkpoint whose config.json is changed, key by key."""

import json
import random
from pathlib import Path
from typing import Any

from tests.checkpoints import VOCAB_SIZE, checkpoint

PROMPT = [random.Random(4).randrange(2, VOCAB_SIZE) for _ in range(56)]
ABSENT = "absent"  # the key is taken out
Change = tuple[str, Any]


def written(directory: Path, family: str, *changes: Change) -> Path:
    directory.mkdir(parents=True)
    for path in checkpoint(family).iterdir():
        if path.name == "config.json":
            config = json.loads(path.read_text()) | dict(changes)
            config = {key: value for key, value in config.items() if value is not ABSENT}
            (directory / path.name).write_text(json.dumps(config))
        else:
            (directory / path.name).symlink_to(path)
    return directory
