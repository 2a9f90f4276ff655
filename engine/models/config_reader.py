"""Typed reads from a checkpoint's config.json."""

from collections.abc import Mapping
from typing import Any

from cluster.errors import CheckpointError


class ConfigReader:
    """Typed reads from config.json; each mistake is a sentence with the key and its value."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        value: int = self._read(key, default, (int,), "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._read(key, default, (int, float), "a positive number"))

    def optional_number(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def nested(self, key: str) -> "ConfigReader":
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return ConfigReader(value, f"'{key}' in {self.source}")

    def _read(self, key: str, default: Any, types: tuple[type, ...], wanted: str) -> Any:
        value = default if self.get(key) is None else self.get(key)
        if type(value) not in types or not value > 0:
            raise self.wrong(key, value, wanted)
        return value

    def wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        if value is None:
            return self.refuse(f"'{key}' is missing, and has no default: give {wanted}.")
        return CheckpointError(
            f"'{key}' in {self.source} must be {wanted}, not {value!r}: check that the "
            "checkpoint is complete and of a supported family."
        )

    def refuse(self, sentence: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {sentence}")


def parse_token_ids(config: ConfigReader, key: str) -> tuple[int, ...]:
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise config.wrong(key, value, "a token id or a list of token ids")
    return tuple(ids)
