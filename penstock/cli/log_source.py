"""Reads the logs of a cluster where they are: in a directory of this machine, or on the machines of
a Ray."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.log_dir import default_log_root, is_written, log_dirs
from deploy.log_pieces import Piece, PiecesAsked, pieces
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import known_cluster, need_note, told_address
from penstock.cli.notes import LocalNote
from penstock.cli.output import fail, say
from penstock.cli.placed_notes import PlacedNote

LOCAL_S = 0.2  # between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSource:
    """Gives the logs that are asked for."""

    where: str  # in words
    pieces: Callable[[PiecesAsked], list[Piece]]
    is_written: Callable[[], bool]  # whether the cluster runs
    interval_s: float

    def processes(self) -> list[str]:
        """Lists the processes that have a log."""
        return sorted({piece.process for piece in self.pieces(PiecesAsked(num_lines=1))})


@contextmanager
def opened_logs(
    *, address: str | None, log_dir: Path | None, cluster: str | None, ray: str | None
) -> Iterator[LogSource]:
    """Opens logs until the block ends. Ends the command where there is nothing to read."""
    if sum(map(bool, (address, log_dir, cluster or ray))) > 1:
        fail("Give one of --address, --log-dir, and --cluster or --ray.", ExitCode.USAGE)
    known = None if log_dir or cluster or ray else known_cluster(address)
    if isinstance(known, PlacedNote):
        cluster, ray = known.name, ray or known.ray
    if cluster or ray:
        from penstock.cli.on_ray import logs_of, ray_with

        with ray_with(cluster, ray) as found:
            yield logs_of(*found)
    elif isinstance(known, LocalNote):
        yield in_folder(Path(known.log_dir))
    elif log_dir is None and (told := told_address(address)):
        need_note(told, "give the --log-dir that it had")
    else:
        yield in_folder(last_kept(log_dir))


def in_folder(folder: Path) -> LogSource:
    return LogSource(
        where=f"in {folder}",
        pieces=partial(pieces, folder),
        is_written=partial(is_written, folder),
        interval_s=LOCAL_S,
    )


def last_kept(root: Path | None) -> Path:
    """The last one's, of those that `serve` ran. Ends the command where there is none."""
    try:
        root = root or default_log_root()
    except OSError as error:
        fail(f"There are no logs: {error}; give --log-dir.", ExitCode.USAGE)
    kept = log_dirs(root)
    if not kept:
        fail(
            f"There are no logs of a cluster in {root}: start one with 'penstock serve'.",
            ExitCode.USAGE,
        )
    if not is_written(kept[-1]):
        say(f"No cluster writes in {root}: this is the last one's, in {kept[-1]}.")
    return kept[-1]
