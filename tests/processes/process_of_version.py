"""A process of a build whose wire version differs from this one's, as a program:
`process_of_version.py DIFFERENCE MODULE --config FILE`."""

import runpy
import sys

from cluster import wire_version

difference, module = int(sys.argv[1]), sys.argv[2]
wire_version.WIRE_VERSION += difference  # before anything else is imported that reads it
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
