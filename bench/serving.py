"""`penstock bench --start` in the source tree, which can invent a checkpoint: `python -m
bench.serving --random-model 100m ARGUMENTS`. Without --random-model it is the shipped model."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.cluster_file.local import SHIPPED_MODEL
from penstock.cli.app import run


def main(arguments: Sequence[str]) -> None:
    """Ends the process with the exit code of `penstock bench`."""
    parser = argparse.ArgumentParser(prog="bench.serving", add_help=False, allow_abbrev=False)
    parser.add_argument("--random-model", choices=["54m", "100m"])
    flags, others = parser.parse_known_args(arguments)
    if not flags.random_model:
        run(["bench", "--start", *others])
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        checkpoint = Path(folder) / f"random-{flags.random_model}"
        _write(checkpoint, flags.random_model)
        run(["bench", "--start", "--model-dir", str(checkpoint), *others])


def _write(folder: Path, size: str) -> None:
    # Loaded only here: it needs torch.
    from bench.random_llama import SHAPE_54M, SHAPE_100M, write_random_llama

    print(f"Writing a random checkpoint of {size} parameters.", file=sys.stderr, flush=True)
    write_random_llama(
        folder, {"54m": SHAPE_54M, "100m": SHAPE_100M}[size], tokenizer_from=SHIPPED_MODEL
    )


if __name__ == "__main__":
    main(sys.argv[1:])
