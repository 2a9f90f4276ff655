"""`penstock policy apply|reload|rollback|status|history|explain`: that of a running cluster."""

import getpass
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.document.units import unit_of
from cluster.errors import ConfigError
from penstock.cli import options
from penstock.cli.cluster_calls import ask_cluster
from penstock.cli.local import find_cluster
from penstock.cli.messages import plain
from penstock.cli.output import say, write, write_json, write_table
from penstock.cli.policy_files import PolicyFile, valid_policy
from penstock.v1 import worker_pb2 as pb

HISTORY_COLUMNS = ["when", "generation", "policy", "by", "from", "why"]
MAX_NAME = 200  # letters that the router takes
NUM_GIVEN_AWAY = 8  # candidates of a request, in a bundle
APPLY_TIMEOUT_S = 10.0  # a long document is read in a second, and the store may be asked again
OUTCOMES = {
    pb.POLICY_OUTCOME_UNCHANGED: "is in force already",
    pb.POLICY_OUTCOME_APPLIED: "is in force",
    pb.POLICY_OUTCOME_CANARY: "is on trial",
    pb.POLICY_OUTCOME_ROLLED_BACK: "is in force again",
}

Share = Annotated[
    str | None,
    typer.Option(
        "--canary", metavar="PERCENT", help="Of the requests, at first: 5%. Default: all."
    ),
]


def apply(
    file: PolicyFile,
    canary: Share = None,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Put a policy in force, for all requests or, as a canary, for a part of them at first.

    Requests in flight keep the policy that placed them. A canary that breaches its guards is
    rolled back by itself, one that keeps within them takes over. A file that the router follows
    wins again when it changes.

    Example: penstock policy apply policy.yaml --canary 5%
    """
    source, text = valid_policy(file)
    request = pb.ApplyPolicyRequest(
        text=text, source=source, canary_share=_share(canary), by=_own_word()
    )
    _tell_change(_ask("ApplyPolicy", request, address, secrets_file), json)


def reload(
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Make the router read its policy file now. It looks every second anyway."""
    _tell_change(
        _ask("ReloadPolicy", pb.ReloadPolicyRequest(by=_own_word()), address, secrets_file), json
    )


def rollback(
    reason: Annotated[
        str, typer.Option("--reason", help="Why; shown by 'policy status'. Default: none.")
    ] = "",
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """End the canary; where there is none, return to the policy before."""
    request = pb.RollBackPolicyRequest(reason=reason, by=_own_word())
    _tell_change(_ask("RollBackPolicy", request, address, secrets_file), json)


def status(
    text: Annotated[
        bool, typer.Option("--text", help="Only the document in force, as it was given.")
    ] = False,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Show the policy in force, its canary and its shadow, and how the last reload went."""
    reply = _ask("PolicyStatus", pb.PolicyStatusRequest(), address, secrets_file)
    if json:
        write_json({**plain(reply), "metrics": _metrics(reply)})
    elif text:
        write(reply.active.text)
    else:
        _show_status(reply)


def history(
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Show which policy was changed when, from where and by whose own word.

    The last hundred changes, the latest at the end.
    """
    reply = _ask("PolicyHistory", pb.PolicyHistoryRequest(), address, secrets_file)
    if json:
        write_json(plain(reply)["changes"])
    else:
        write_table(HISTORY_COLUMNS, list(map(_change_row, reply.changes)))


def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID")],
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, max=1000, help="The cheapest.")
    ] = 10,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Show why a request went where it went, and what would have been best in hindsight.

    Every candidate is shown with every term of its price, in milliseconds, and who was left out.
    """
    request = pb.ExplainRequest(request_id=request_id, max_candidates=candidates)
    reply = _ask("Explain", request, address, secrets_file)
    if json:
        write_json(plain(reply))
    else:
        _show_explanation(reply)


def policy_json(address: str, secrets_file: Path) -> dict[str, Any]:
    """Gives what is in force, and its last changes."""
    status = ask_cluster("PolicyStatus", pb.PolicyStatusRequest(), address, secrets_file)
    past = ask_cluster("PolicyHistory", pb.PolicyHistoryRequest(), address, secrets_file)
    return {**plain(status), **plain(past)}


def explanation_json(request_id: str, address: str, secrets_file: Path) -> dict[str, Any]:
    """Leaves out what an error said: that may be of the request's own."""
    request = pb.ExplainRequest(request_id=request_id, max_candidates=NUM_GIVEN_AWAY)
    reply = ask_cluster("Explain", request, address, secrets_file)
    reply.outcome.ClearField("error")
    return plain(reply)


COMMANDS: dict[str, Callable[..., None]] = {
    "apply": apply,
    "reload": reload,
    "rollback": rollback,
    "status": status,
    "history": history,
    "explain": explain,
}


def _ask(method: str, request: Any, address: str | None, secrets_file: Path | None) -> Any:
    where, secrets = find_cluster(address, secrets_file)
    return ask_cluster(method, request, where, secrets, timeout_s=APPLY_TIMEOUT_S)


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    unit = unit_of("_share")
    assert unit is not None
    try:
        return unit.parse(text)
    except ValueError as error:
        raise ConfigError(f"'--canary {text}': {error}") from error


def _tell_change(change: pb.PolicyChange, json: bool) -> None:
    if json:
        write_json(plain(change))
        return
    for warning in change.warnings:
        say(f"warning: {warning}", style="yellow")
    if change.outcome == pb.POLICY_OUTCOME_CANARY:
        say("It waits for requests: 'penstock policy status' says how it fares.")
    lines = [f"{_named(change.generation)} {OUTCOMES[change.outcome]}", *change.changes]
    write("\n  ".join(lines) + "\n")


def _named(generation: pb.PolicyGeneration) -> str:
    return f"generation {generation.number} '{generation.name}' ({generation.digest})"


def _metrics(reply: pb.PolicyStatusResponse) -> dict[str, Any]:
    """Gives metrics by the names that Prometheus users know."""
    return {
        "penstock_config_last_reload_successful": int(reply.reload.last_reload_successful),
        "penstock_config_last_reload_success_timestamp_seconds": (
            reply.reload.last_reload_success_timestamp_seconds
        ),
        "penstock_config_info": {
            "hash": reply.active.digest,
            "generation": str(reply.active.number),
        },
    }


def _show_status(reply: pb.PolicyStatusResponse) -> None:
    lines = [f"in force   {_since(reply.active)}"]
    if reply.HasField("canary"):
        lines += [f"canary     {_since(reply.canary)}", *_trial_lines(reply.trial)]
    if reply.HasField("previous"):
        lines.append(f"before     {_since(reply.previous)}")
    if reply.HasField("shadow"):
        lines.append(f"shadow     {_shadow_text(reply.shadow)}")
    lines += [f"because    {reply.last_change}", f"reload     {_reload_text(reply)}"]
    if reply.store_away:
        lines.append("store      DOES NOT ANSWER: other routers may place by another policy")
    if regret := reply.regret.evaluated:
        lines.append(f"hindsight  {_regret_text(reply.regret, regret)}")
    write("\n".join(lines) + "\n\n")
    columns = ["generation", "placed", "in flight", "failed"]
    rows = [
        [str(number) for number in (each.number, each.placed, each.in_flight, each.errors)]
        for each in reply.traffic
    ]
    write_table(columns, rows)


def _change_row(change: pb.PastPolicyChange) -> list[str]:
    at = _utc(change.unix_seconds)
    policy = f"{change.name} ({change.digest})"
    return [at, str(change.generation), policy, change.by, change.address, change.why]


def _utc(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, tz=UTC):%Y-%m-%d %H:%M:%S} UTC"


def _own_word() -> str:
    """Says who this is, for the history: nobody proves it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # it has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:MAX_NAME]


def _since(generation: pb.PolicyGeneration) -> str:
    return f"{_named(generation)} from {generation.source}, since {_utc(generation.unix_seconds)}"


def _trial_lines(trial: pb.CanaryStatus) -> list[str]:
    sides = (("canary", trial.canary), ("in force", trial.baseline))
    figures = "; ".join(
        f"{name}: {side.requests} requests, {side.errors} failed,"
        f" TTFT p95 {f'{_ms(side.ttft_p95_seconds)} ms' if side.ttft_p95_seconds else '-'}"
        for name, side in sides
    )
    return [
        f"  gets {100 * trial.traffic_share:g} % for {trial.duration_seconds:g} s: {trial.verdict}",
        f"  {figures}",
    ]


def _shadow_text(shadow: pb.ShadowStatus) -> str:
    if not shadow.evaluated:
        return f"of {100 * shadow.sample_share:g} % of the requests; none has ended yet"
    share = 100 * shadow.disagreed / shadow.evaluated
    failed = f"; {shadow.failed} of its decisions failed" if shadow.failed else ""
    return (
        f"of {100 * shadow.sample_share:g} % of the requests: {shadow.evaluated} decided again,"
        f" {share:.1f} % elsewhere; predicted TTFT {_ms(shadow.ttft_difference_seconds):+} ms,"
        f" price {_ms(shadow.price_difference_seconds):+} ms{failed}"
    )


def _reload_text(reply: pb.PolicyStatusResponse) -> str:
    followed = f"'{reply.file}' is followed" if reply.file else "no file is followed"
    reload = reply.reload
    if reload.last_reload_successful:
        return f"{followed}; changes: {reload.attempts} came, {reload.failures} refused"
    return f"{followed}; the LAST CHANGE WAS REFUSED: {reload.error}"


def _regret_text(regret: pb.RegretStatus, num: int) -> str:
    return (
        f"{num} requests looked back at: the choice was {_ms(regret.mean_seconds)} ms dearer than"
        f" the best (p90 {_ms(regret.p90_seconds)} ms), TTFT"
        f" {_ms(regret.mean_ttft_error_seconds):+} ms off"
    )


def _show_explanation(reply: pb.ExplainResponse) -> None:
    generation = reply.generation
    write(
        f"request {reply.request_id}: {reply.prompt_tokens} prompt tokens, class"
        f" '{reply.service_class}', policy '{generation.name}' (generation {generation.number})\n"
        f"{_outcome_text(reply.outcome)}\n"
    )
    for number, each in enumerate(reply.tries, start=1):
        head = f"try {number}, " if len(reply.tries) > 1 else ""
        write(f"\n{head}rule '{each.rule}': {each.sentence}\n")
        if each.candidates:
            _show_candidates(each)
        for left_out in each.left_out:
            write(f"left out: {left_out.worker}, {left_out.reason}\n")
        if each.HasField("regret_seconds"):
            write(f"in hindsight {_hindsight_text(each)}\n")


def _hindsight_text(told: pb.ExplainedTry) -> str:
    if not told.regret_seconds:
        return "as good as any"
    return f"{_ms(told.regret_seconds)} ms dearer than the best: {told.best_afterwards}"


def _outcome_text(outcome: pb.RequestOutcome) -> str:
    parts = [outcome.state]
    if outcome.HasField("ttft_seconds"):
        parts.append(f"first token after {_ms(outcome.ttft_seconds)} ms")
        parts.append(f"{outcome.cached_tokens} tokens were cached")
    if outcome.HasField("total_seconds"):
        parts.append(f"{outcome.tokens} tokens in {_ms(outcome.total_seconds)} ms")
    if outcome.moved:
        parts.append(f"moved {outcome.moved} times")
    return ", ".join(parts) + (f": {outcome.error}" if outcome.error else "")


def _show_candidates(told: pb.ExplainedTry) -> None:
    """A row a candidate, the chosen one first; terms that are 0 everywhere are left out."""
    names = [term.name for each in told.candidates for term in each.terms if term.seconds]
    terms = list(dict.fromkeys(names))
    columns = ["", "decode", "prefill", "fetches from", "cached", "price", *terms]
    rows = [
        [
            "*" if each.chosen else "",
            each.decode,
            each.prefill or "itself",
            each.source,
            str(each.cached_tokens),
            str(_ms(each.price_seconds)),
            *_cells(each, terms),
        ]
        for each in told.candidates
    ]
    write_table(columns, rows)
    if (more := told.num_candidates - len(told.candidates)) > 0:
        write(f"and {more} more\n")


def _cells(candidate: pb.Candidate, terms: list[str]) -> list[str]:
    found = {term.name: term.seconds for term in candidate.terms}
    return [str(_ms(found[name])) if name in found else "" for name in terms]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)
