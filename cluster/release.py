"""Says which release this is."""

from importlib import metadata


def version() -> str:
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "unknown"
