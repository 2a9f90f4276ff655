"""Who waits for another waits by `cluster.lateness`, not by the bare clock: else whatever stopped
the waiting one is held against the other."""

import ast
from typing import Any

# Where the clock is right: nobody is judged when it runs out.
BY_THE_CLOCK = {
    "cluster/lateness.py": "it knows better",
    "worker/registrar.py": "a pause between two heartbeats",
    "cluster/rpc.py": "a client's deadline",
    "worker/frame_server.py": "a client's deadline",
    "cluster/watch.py": "a pause between two reports",
    "deploy/planner/loop.py": "a pause between two looks",
    "worker/fences.py": "a pause between two questions",
}
FOLDERS = {"cluster", "kv_transfer", "worker", "decode_worker", "prefill_worker", "deploy"}
BARE = {"timeout", "timeout_at", "wait_for"}


def waits_by_the_clock(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in BARE
        and isinstance(node.value, ast.Name)
        and node.value.id == "asyncio"
        for node in ast.walk(tree)
    )


def test_nobody_is_judged_by_the_bare_clock(modules: list[Any]) -> None:
    ours = [module for module in modules if module.path.parts[0] in FOLDERS]
    found = {str(module.path) for module in ours if waits_by_the_clock(module.tree)}
    assert found == set(BY_THE_CLOCK), "use cluster.lateness.Patience, or say here why not"
