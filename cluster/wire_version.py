"""The version of what processes of a cluster say to each other, and which versions go together.

It is raised with whatever a process of the version before would misread. What holds between two
versions that follow each other, so that a cluster can be replaced part by part:

- a router speaks to workers of its own version and of the one before: it is replaced first on
  the way up, and last on the way down;
- workers register beside each other, and read each other's records in the store;
- KV moves between workers of one version only. A worker that is asked for more computes instead.

Knows no message: that a change is one of these is for whoever makes it to say.
"""

WIRE_VERSION = 3  # 2: prompts and prefixes had a call each; 1: grants named no transport
NAMED_SINCE = 3  # requests name workers, whom members know; before, they told all of them


def unspoken(version: int) -> list[str]:
    """Says why a router of this release does not speak to workers of that version, as lines."""
    if WIRE_VERSION - 1 <= version <= WIRE_VERSION:
        return []
    remedy = "upgrade the router first" if version > WIRE_VERSION else "upgrade the worker"
    spoken = f"{WIRE_VERSION - 1} or {WIRE_VERSION}"
    return [f"wire_version: {spoken} and {version} ({remedy})"]


def are_neighbors(one: int, other: int) -> bool:
    """Tells whether workers of both versions may be in one cluster, which is being replaced."""
    return abs(one - other) <= 1
