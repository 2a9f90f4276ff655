"""`penstock doctor`: whether the cluster can do its work, and what to mend."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.secrets import load_secrets
from deploy.doctor.examination import Examination, Report
from deploy.doctor.finding import Finding, Severity
from deploy.doctor.pair_checks import PairResult
from penstock.cli import options
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_address, need_secrets, started_workers
from penstock.cli.output import err, say, write, write_json, write_table
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
    where = find_address(address)
    secrets = need_secrets(secrets_file, where)
    report = asyncio.run(_examine(where, secrets, fetch_status(where, secrets), timeout))
    if json:
        write_json(as_json(report))
    else:
        _show(report)
    if report.severity is Severity.FAIL:
        raise typer.Exit(ExitCode.UNHEALTHY)


async def _examine(address: str, secrets_file: Path, status: Any, timeout_s: float) -> Report:
    token, expected = load_secrets(secrets_file).cluster_token, started_workers(secrets_file)
    async with Examination(address, token, secrets_file, say=_progress) as examination:
        return await examination.report(status, expected, timeout_s=timeout_s)


def _progress(text: str) -> None:
    if err.is_terminal:
        say(text)


def as_json(report: Report) -> dict[str, Any]:
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


def _show(report: Report) -> None:
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
