"""The table of errors says what the client does and how commands end."""

import inspect
import re

import grpc
import pytest

from cluster import errors as cluster_errors
from cluster.status import STATUS
from penstock import errors
from penstock.cli.exit_codes import exit_code
from penstock.retry import Attempts, Reach, RetryBudget, RetryPolicy
from tests.docs.pages import PAGES

ROW = re.compile(r"^\| `(\w+Error)` \| (\w+) \| (.*?) \| (\w[\w ]*) \| (\d+) \|$", re.MULTILINE)
ROWS = {found[0]: found[1:] for found in ROW.findall(PAGES["docs/clients.md"])}
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, errors.PenstockError)
}
BASES = {base.__name__ for kind in KINDS.values() for base in kind.__mro__[1:]}


def test_every_error_that_is_raised_is_told() -> None:
    assert list(ROWS) == [name for name in KINDS if name not in BASES]


@pytest.mark.parametrize("name", ROWS)
def test_an_error_is_told_as_it_is(name: str) -> None:
    code, meaning, does, exits = ROWS[name]
    kind = KINDS[name]
    error = made(kind, code)
    assert does_what(error) == does
    assert exit_code(error) == int(exits)
    for attribute in re.findall(r"`(\w+)`", meaning):
        assert hasattr(error, attribute)


@pytest.mark.parametrize(("reason", "kind"), errors.BY_REASON.items())
def test_the_cluster_sends_the_status_that_is_told(
    reason: str, kind: type[errors.PenstockError]
) -> None:
    raised = {each.reason: code for each, code in STATUS.items()}
    raised.setdefault(cluster_errors.InternalError.reason, grpc.StatusCode.INTERNAL)
    assert ROWS[kind.__name__][0] == raised[reason].name


def made(kind: type[errors.PenstockError], code: str) -> errors.PenstockError:
    """As the cluster sends it, but for what nobody sends."""
    if code == "none":
        return kind("The stream ended.")
    nobody_said_it = kind is errors.UnreachableError
    metadata = {} if nobody_said_it else {"why": "it says so"}
    return kind("No.", code=grpc.StatusCode[code], metadata=metadata)


def does_what(error: errors.PenstockError) -> str:
    """What a client of a server that was there does with a first failure, and with many."""
    reach = Reach(was_reached=True, reconnect_timeout=1e9)
    attempts = Attempts(RetryBudget(RetryPolicy()), reach=reach, dice=lambda low, high: high)
    for number in range(10):
        try:
            attempts.delay_after(error)
        except type(error):
            return "asks again" if number else "raises"
    return "waits"


def test_the_other_languages_are_marked() -> None:
    _, _, rest = PAGES["docs/clients.md"].partition("### Go, Java, Rust, Node")
    assert "Not tested here" in rest
