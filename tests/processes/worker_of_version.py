"""A worker of this release or, where its number is odd, one that speaks the wire version before, as
a program: `worker_of_version.py MODULE --config FILE`."""

import runpy
import sys
from pathlib import Path

import yaml

from cluster import wire_version

module, config = sys.argv[1], yaml.safe_load(Path(sys.argv[3]).read_text())
# Before anything else is imported that reads it.
wire_version.WIRE_VERSION -= int(config["worker_id"].rpartition("-")[2]) % 2
sys.argv = [module, *sys.argv[2:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
