"""Files what workers report of their speed, memory and links: `penstock status --json` writes it,
`penstock plan` reads it."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from cluster.config import parse_config
from cluster.errors import ConfigError
from simulator.setting import PairLink, Setting, TokenKv, WorkerMake

KEY: Final = "speeds"  # where a whole status has them
_MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    prefill: WorkerMake
    decode: WorkerMake
    model: TokenKv
    link: PairLink


def speeds_of(setting: Setting) -> dict[str, Any]:
    """Gives plain values. GPUs are not reported: a worker counts as one."""
    alone = (replace(make, num_gpus=1) for make in (setting.prefill, setting.decode))
    prefill, decode = alone
    return asdict(Speeds(prefill=prefill, decode=decode, model=setting.model, link=setting.link))


def load_speeds(path: Path) -> Speeds:
    """Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"'{path}' cannot be read: {error.strerror}. Write it with 'penstock status --json'."
        ) from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"'{path}' is larger than {_MAX_BYTES >> 20} MiB: that is no status.")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"'{path}' is not JSON: write it with 'penstock status --json'."
        ) from error
    if isinstance(found, dict) and KEY in found:
        found = found[KEY]
        if found is None:
            raise ConfigError(
                f"In '{path}' the workers do not know their costs yet: send them some requests,"
                " then ask for their status again."
            )
    return parse_config(Speeds, found, source=f"'{path}'")
