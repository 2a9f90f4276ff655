"""The logs of a cluster on many machines: each is asked for what is new there, of processes that
run and of those that do not any more."""

from typing import TYPE_CHECKING, Final

from deploy.log_pieces import Piece, PiecesAsked
from deploy.placement import Machine
from deploy.ready import Say

if TYPE_CHECKING:  # it loads Ray
    from deploy.ray_door import Ray

ANSWER_S: Final = 20.0  # for a process to start on each machine, and to look


class PlacedLogs:
    """Reads logs of all machines, as long as the Ray is held."""

    def __init__(self, ray: "Ray", cluster: str, *, say: Say) -> None:
        """`say` hears once of each machine whose logs are not to be had."""
        self._ray = ray
        self._cluster = cluster
        self._say = say
        self._mute: set[str] = set()
        self._machine_of: dict[str, Machine] = {}  # by log: who tells it

    def is_written(self) -> bool:
        """Tells whether the cluster runs."""
        return bool(self._ray.groups(self._cluster))

    def pieces(self, asked: PiecesAsked) -> list[Piece]:
        """Reads pieces from all machines at once, or from the one that has the log."""
        known = self._machine_of.get(asked.log)
        machines = [known] if known else self._ray.machines()
        replies = self._ray.logs(machines, self._cluster, asked, ANSWER_S)
        found: dict[str, Piece] = {}
        for machine in machines:
            reply = replies.get(machine.machine_id)
            if reply is None or reply.fault:
                self._tell(machine, reply.fault if reply else f"no answer within {ANSWER_S:g} s")
                continue
            for piece in Piece.from_json(reply.text):
                # Where several are one machine, each of them tells of all.
                if found.setdefault(piece.log, piece) is piece:
                    self._machine_of[piece.log] = machine
        return list(found.values())

    def _tell(self, machine: Machine, why: str) -> None:
        if machine.machine_id not in self._mute:
            self._mute.add(machine.machine_id)
            self._say(f"The logs on {machine} are not to be had: {why}.")
