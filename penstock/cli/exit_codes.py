"""What a script may rely on: one exit code a kind of end."""

from enum import IntEnum

from penstock import errors


class ExitCode(IntEnum):
    OK = 0
    FAILURE = 1  # a part of the cluster failed, or a bug
    USAGE = 2
    REFUSED = 3  # the request is wrong
    UNREACHABLE = 4  # no cluster there
    OVERLOADED = 5  # nothing was executed; later it may be
    DEADLINE = 6
    CUT_OFF = 7  # the answer is incomplete
    UNHEALTHY = 8  # `status`: something does not serve
    INTERRUPTED = 130


BY_ERROR: dict[type[errors.PenstockError], ExitCode] = {
    errors.UnreachableError: ExitCode.UNREACHABLE,
    errors.ResourceError: ExitCode.OVERLOADED,
    errors.CallerError: ExitCode.REFUSED,
    errors.DeadlineExceededError: ExitCode.DEADLINE,
    errors.StreamInterruptedError: ExitCode.CUT_OFF,
    errors.IncompleteStreamError: ExitCode.CUT_OFF,
    errors.RequestCancelledError: ExitCode.INTERRUPTED,
}


def exit_code(error: errors.PenstockError) -> ExitCode:
    kinds = (BY_ERROR[kind] for kind in type(error).__mro__ if kind in BY_ERROR)
    return next(kinds, ExitCode.FAILURE)
