"""`penstock bundle`: what somebody else needs to know of a cluster that is in trouble, as one file
without its secrets and without what was asked of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import ConfigError
from cluster.secrets import load_secrets
from deploy.bundle.archive import write_archive
from deploy.bundle.known_secrets import KnownSecrets, named_secrets
from penstock.cli import options
from penstock.cli.bundle_parts import Gathered, gather
from penstock.cli.bundle_subject import Subject, found_subject
from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail, json_line, kept_stdout, say


def bundle(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: by cluster and time."),
    ] = None,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    cluster: options.Cluster = None,
    ray: options.KnownRay = None,
    json: options.Json = False,
) -> None:
    """Pack what is known of a cluster for who is to help: no secret, no prompt, no answer.

    Configuration, versions, the ends of all logs, status, doctor, the policy, the last placements.
    What could not be had is listed. Where a secret of the cluster is found in it, nothing is
    written.

    Example: penstock bundle -o trouble.tar.gz
    """
    with kept_stdout() as show:
        with found_subject(address, secrets_file, cluster, ray) as subject:
            gathered = gather(subject, say=say)
        path = output or Path(_default_name(subject))
        known, unsearched = _known_secrets(subject)
        gathered.tell_contents(subject.name, unsearched)
        if leak := write_archive(path, gathered.members, known):
            fail(
                f"Nothing is written: {leak.secret} is in '{leak.member}', where it does not"
                " belong. Others may have read it there: draw new secrets.",
                ExitCode.FAILURE,
            )
        show(_told(path, gathered, json=json))


def _default_name(subject: Subject) -> str:
    return f"penstock-{subject.name or 'cluster'}-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz"


def _known_secrets(subject: Subject) -> tuple[KnownSecrets, dict[str, str]]:
    """And of which it could not be searched, with why."""
    named = {"the token of Ray": subject.token.encode()} if subject.token else {}
    unsearched = {}
    try:
        if subject.secrets_file is None:
            raise ConfigError("its secrets file is not known here")
        named |= named_secrets(load_secrets(subject.secrets_file))
    except ConfigError as error:
        unsearched["the cluster's secrets"] = error.message
    known = KnownSecrets(named)
    return known, unsearched | dict.fromkeys(known.too_short, "too short to be searched for")


def _told(path: Path, gathered: Gathered, *, json: bool) -> str:
    if json:
        value = {"file": str(path), "members": [*gathered.members], "missing": gathered.missing}
        return json_line(value)
    lines = [f"  {name}" for name in gathered.members]
    missing = [f"missing: {name}: {why}" for name, why in gathered.missing.items()]
    return "\n".join([f"{path}", *lines, *missing, ""])
