"""`penstock doctor`: whether the cluster can do its work, and what to mend."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.doctor.examination import DoctorReport, Examination
from deploy.doctor.finding import Finding, Severity
from deploy.doctor.pair_checks import PairResult
from penstock.cli import options
from penstock.cli.cluster_calls import internal_address
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_cluster, known_at, started_workers
from penstock.cli.output import err, say, write, write_json, write_table
from penstock.cli.placed_notes import PlacedNote
from penstock.cli.status import fetch_status

COLUMNS = ["from", "to", "transport", "GB/s", "latency", "verdict"]


def doctor(
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds for all of it.", min=1)
    ] = 60.0,
    json: options.Json = False,
) -> None:
    """Move bytes between workers, look at every process and its machine, say what to mend.

    Exits 8 when something fails.

    Example: penstock doctor --json | jq '.findings[] | select(.severity != "pass")'
    """
    where, secrets = find_cluster(address, secrets_file)
    report = examined(where, secrets, timeout)
    if isinstance(note := known_at(where), PlacedNote):
        report = replace(report, findings=(*report.findings, *_of_ray(note.ray)))
    if json:
        write_json(as_json(report))
    else:
        _show(report)
    if report.severity is Severity.FAIL:
        raise typer.Exit(ExitCode.UNHEALTHY)


def examined(address: str, secrets_file: Path, timeout_s: float) -> DoctorReport:
    """All of it, through the router at an address."""
    where = internal_address(address, secrets_file)
    return asyncio.run(_examine(where, secrets_file, fetch_status(where, secrets_file), timeout_s))


def _of_ray(address: str) -> list[Finding]:
    """Finds where Ray listens; or that it is not known where it does not answer."""
    from penstock.cli.on_ray import findings_of

    _progress("Asking every machine of Ray where it listens.")
    return findings_of(address)


async def _examine(address: str, secrets_file: Path, status: Any, timeout_s: float) -> DoctorReport:
    expected = started_workers(secrets_file)
    async with Examination(address, secrets_file, say=_progress) as examination:
        return await examination.report(status, expected, timeout_s=timeout_s)


def _progress(text: str) -> None:
    if err.is_terminal:
        say(text)


def as_json(report: DoctorReport) -> dict[str, Any]:
    """Keys are never renamed: scripts read them. Seconds and bytes, never scaled."""
    return {
        "address": report.address,
        "severity": str(report.severity),
        "pairs": list(map(_pair_json, report.pairs)),
        "findings": [_finding_json(finding) for finding in report.findings],
    }


def _pair_json(pair: PairResult) -> dict[str, Any]:
    small, large = pair.probe.small, pair.probe.large
    return {
        "source": pair.source,
        "receiver": pair.receiver,
        "severity": str(pair.severity),
        "transport": large.transport if large else None,
        "num_bytes": large.num_bytes if large else 0,
        "bytes_per_second": large.bytes_per_s if large else None,
        "latency_seconds": small.seconds if small else None,
        "findings": [_finding_json(finding) for finding in pair.findings],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "severity": str(finding.severity),
        "check": finding.check,
        "subject": finding.subject,
        "what": finding.what,
        "fix": finding.fix,
    }


def _show(report: DoctorReport) -> None:
    if report.pairs:
        write_table(COLUMNS, list(map(_pair_row, report.pairs)))
        write("\n")
    all_findings = [*report.findings, *(f for pair in report.pairs for f in pair.findings)]
    for severity in Severity:  # what is worst stands last, next to the prompt
        for line in _lines(finding for finding in all_findings if finding.severity is severity):
            write(line + "\n")
    count = Counter(finding.severity for finding in all_findings)
    summary = ", ".join(f"{count[severity]} {severity}" for severity in Severity)
    write(f"\nrouter {report.address} · {summary}\n")


def _pair_row(pair: PairResult) -> list[str]:
    small, large = pair.probe.small, pair.probe.large
    return [
        pair.source,
        pair.receiver,
        large.transport if large else "",
        f"{large.bytes_per_s / 1e9:.2f}" if large else "",
        f"{small.seconds * 1e3:.1f} ms" if small else "",
        str(pair.severity),
    ]


def _lines(findings: Iterator[Finding]) -> Iterator[str]:
    """One finding of several subjects is one line; what to do about it follows."""

    def said(finding: Finding) -> tuple[str, str, str]:
        return finding.check, finding.what, finding.fix

    for (check, what, fix), group in groupby(sorted(findings, key=said), key=said):
        same = list(group)
        subjects = ", ".join(finding.subject for finding in same)
        yield f"{same[0].severity:4}  {check:12}  {subjects}: {what}"
        if fix:
            yield f"{'':20}-> {fix}"
