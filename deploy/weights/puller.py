"""The process that pulls, and tells whoever started it how far it is: one that is killed is killed
at once, and leaves what goes on later. Its arguments hold no secret: those are in its environment.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from cluster.errors import StartupError
from cluster.process import configure_logging, follow_parent
from deploy.weights.manifest import describes, every
from deploy.weights.origin import Weights
from deploy.weights.pull import pull

logger = logging.getLogger(__name__)


def main() -> int:
    arguments = argparse.ArgumentParser()
    for name in ("source", "digest", "directory"):
        arguments.add_argument(name)
    arguments.add_argument("--described", action="store_true")
    said = arguments.parse_args()
    configure_logging()
    try:
        follow_parent()
        pull(
            Weights(source=said.source, digest=said.digest),
            Path(said.directory),
            say=_say,
            is_wanted=describes if said.described else every,
        )
    except StartupError as error:
        logger.error("%s", error.message)
        print(json.dumps({"refused": error.message}), flush=True)
        return 2
    return 0


def _say(line: str) -> None:
    logger.info("%s", line)
    print(json.dumps({"said": line}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
