"""A Ray of two "machines" on this one, each at a loopback address of its own, as a process that
can be ended. Prints where it is, then waits until its stdin ends."""

import json
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 << 20  # Ray's least: it lies where KV pools do
folder, machines = Path(sys.argv[1]), json.loads(sys.argv[2])

cluster = Cluster()
for number, machine in enumerate(machines):
    head = {"include_dashboard": False, "temp_dir": str(folder)} if number == 0 else {}
    cluster.add_node(
        node_ip_address=f"127.0.0.{number + 2}",
        object_store_memory=OBJECT_STORE_BYTES,
        **machine,
        **head,
    )
raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
sys.stdin.read()
cluster.shutdown()
