"""Checks whoever placed a cluster's processes: findings of where Ray listens."""

from collections.abc import Iterator, Sequence
from typing import Final

from deploy.doctor.finding import Finding, passed, warned
from deploy.doctor.process_checks import THIS_MACHINE, reach
from deploy.on_machine import Listener

_FIX: Final = "Close that network to all but the cluster's machines and its operators"


def ray_sockets(
    machine: str, listeners: Sequence[Listener], *, has_token: bool
) -> Iterator[Finding]:
    """Every listening socket of Ray's on one machine, by who may reach it."""
    subject = f"Ray on {machine}"
    by_reach: dict[str, list[str]] = {}
    for listener in listeners:
        for socket in listener.sockets:
            said = f"{socket} ({listener.name}, pid {listener.pid})"
            by_reach.setdefault(reach(socket), []).append(said)
    for who, sockets in by_reach.items():
        where = ", ".join(sockets)
        if who == THIS_MACHINE:
            yield passed("sockets", subject, f"it listens on {where}: {who} alone")
            continue
        risk = "its token, sent in clear text," if has_token else "nothing is asked for, and that"
        yield warned(
            "sockets",
            subject,
            f"it listens on {where}, and {who} may reach it: {risk} admits to running any code",
            f"{_FIX}." if has_token else f"{_FIX}, and set RAY_AUTH_MODE=token everywhere.",
        )


def unseen(machine: str, why: str) -> Finding:
    return warned(
        "sockets",
        f"Ray on {machine}",
        f"where it listens is not known: {why}",
        "Type this where 'penstock up' was typed, with the same RAY_AUTH_MODE and token.",
    )
