"""A cluster file, and what it wants placed."""

from pathlib import Path

from deploy.cluster_file.document import ClusterDocument
from deploy.cluster_file.kind import CLUSTER
from deploy.placement import Wanted, wanted

CLUSTER_FILE = """
apiVersion: penstock/v1
kind: Cluster
metadata: {name: lab}
spec:
  pools:
    - {name: prompts, role: prefill, minWorkers: 2, resources: {cpus: 4, gpus: 1, role: true}}
    - {name: answers, role: decode, numThreads: 2, labels: {zone: a, rack: r1}}
  routers: {count: 2, ports: [50051]}
  store: redis://10.0.0.1:6379/0
  secretsFile: secrets.yaml
  drain: 7s
"""


def document(text: str = CLUSTER_FILE) -> ClusterDocument:
    return CLUSTER.parse(text)


def by_name(folder: Path, text: str = CLUSTER_FILE) -> dict[str, Wanted]:
    return {each.name: each for each in wanted(document(text), folder)}
