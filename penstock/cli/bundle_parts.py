"""Collects what goes into a bundle, part by part: each is had or is listed with why not."""

import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.bundle.log_text import without_content
from penstock.cli.bundle_subject import Subject
from penstock.cli.doctor import as_json, examined
from penstock.cli.log_lines import Logs
from penstock.cli.log_source import LogSource
from penstock.cli.policy_live import explanation_json, policy_json
from penstock.cli.status import status_json
from penstock.errors import CallerError, PenstockError

TAIL_LINES: Final = 1000  # of each log
TAIL_BYTES: Final = 1 << 20
NUM_RECORDS: Final = 20
DOCTOR_S: Final = 30.0
MAX_WHY: Final = 500  # letters
_REQUEST_ID: Final = re.compile(r'\brequest_id(?:=|": ")([^\s"]{1,128})')

Made = Mapping[str, bytes]  # by name in the archive


@dataclass(slots=True, eq=False)
class Gathered:
    members: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Made]) -> None:
        """`name`: of what is missing where it cannot be made."""
        try:
            self.members.update(make())
        except Exception as error:  # whatever it is: the rest is still worth having
            why = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
            self.missing[name] = str(why)[:MAX_WHY]

    def tell_contents(self, cluster: str, unsearched: Mapping[str, str]) -> None:
        """Writes the list of contents as a member of its own, the first."""
        said = {
            "cluster": cluster,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "members": {name: len(data) for name, data in self.members.items()},
            "missing": self.missing,
            "not_searched_for": dict(unsearched),
        }
        self.members = {"contents.json": _json(said), **self.members}


def gather(subject: Subject, *, say: Callable[[str], None]) -> Gathered:
    """All that is to be had. Says what is being asked for."""
    found = Gathered(missing=dict(subject.unknown))
    for name, make in _parts(subject, found):
        if name not in found.missing:
            say(f"Asking for {name}.")
            found.add(name, make)
    if subject.unheard:
        found.missing["logs of some machines"] = " ".join(subject.unheard)[:MAX_WHY]
    return found


def _parts(subject: Subject, found: Gathered) -> Iterator[tuple[str, Callable[[], Made]]]:
    yield "versions.json", lambda: {"versions.json": _json(subject.versions())}
    if (placement := subject.placement) is not None:
        yield "placement.json", lambda: {"placement.json": _json(placement())}
    if (described := subject.described) is not None:
        yield "cluster.yaml", lambda: {"cluster.yaml": described().encode()}
    if (configs := subject.configs) is not None:
        yield "configuration", lambda: _configs(configs())
    if (logs := subject.logs) is not None:
        yield "logs", lambda: _logs(logs)
    routers = AskedRouters(subject.routers, subject.secrets_file)
    yield "status.json", lambda: {"status.json": _json(routers.first(status_json))}
    yield "doctor.json", lambda: {"doctor.json": _json(routers.first(_doctor))}
    yield "policy.json", lambda: {"policy.json": _json(routers.first(policy_json))}
    yield "records.json", lambda: {"records.json": _json(_records(routers, found.members))}


@dataclass(frozen=True, slots=True)
class AskedRouters:
    """Asks the routers of a cluster, any of which may be away."""

    addresses: Sequence[str]
    secrets_file: Path | None

    def first(self, ask: Callable[[str, Path], Any]) -> Any:
        """Gives what the first says that knows it. Raises what one said that does not, else the
        failure of the last."""
        if self.secrets_file is None:
            raise PenstockError("Its secrets file is not known here: give --secrets-file.")
        refusal: PenstockError | None = None
        failure = PenstockError("No router of it is known here: give --address.")
        for address in self.addresses:
            try:
                return ask(address, self.secrets_file)
            except CallerError as error:
                refusal = error
            except PenstockError as error:
                failure = error
        raise refusal or failure


def _doctor(address: str, secrets_file: Path) -> Any:
    return as_json(examined(address, secrets_file, DOCTOR_S))


def _records(routers: AskedRouters, members: Made) -> list[Any]:
    """Explains the last requests in the logs, as far as a router remembers them."""
    found = []
    request_ids = _request_ids(members)
    if not request_ids:
        raise PenstockError("No request is named in the logs of its routers.")
    for request_id in request_ids:
        try:
            found.append(routers.first(partial(explanation_json, request_id)))
        except CallerError as error:
            found.append({"request_id": request_id, "unknown": error.message[:MAX_WHY]})
    return found


def _request_ids(members: Made) -> list[str]:
    texts = [data for name, data in members.items() if name.startswith("logs/router")]
    said = [each for text in texts for each in _REQUEST_ID.findall(text.decode(errors="replace"))]
    return list(dict.fromkeys(reversed(said)))[:NUM_RECORDS]


def _configs(configs: Mapping[str, Any]) -> Made:
    return {
        f"configuration/{name}.yaml": yaml.safe_dump(config, sort_keys=False).encode()
        for name, config in configs.items()
    }


def _logs(source: LogSource) -> Made:
    """The end of each."""
    ends: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=TAIL_LINES))
    for line in Logs(source.pieces, num_lines=TAIL_LINES).lines():
        ends[line.process].append(without_content(line.text))
    return {f"logs/{name}.log": _end(lines) for name, lines in sorted(ends.items())}


def _end(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()[-TAIL_BYTES:]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n").encode()
