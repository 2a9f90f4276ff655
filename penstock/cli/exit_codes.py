"""Names what a script may rely on: one exit code a kind of end."""

from enum import IntEnum

from cluster.errors import CheckpointError, ConfigError
from penstock import errors


class ExitCode(IntEnum):
    OK = 0
    FAILURE = 1  # a part of the cluster failed, or a bug
    USAGE = 2  # what the command was given is of no use: an option, its value, a file
    REFUSED = 3  # the request is wrong
    UNREACHABLE = 4  # no cluster there
    OVERLOADED = 5  # nothing was executed; later it may be
    DEADLINE = 6
    CUT_OFF = 7  # the answer is incomplete
    UNHEALTHY = 8  # `status`: something does not serve
    INTERRUPTED = 130
    UNREAD = 141  # who read the output has gone, as after a shell's SIGPIPE


class CommandError(Exception):
    """Ends a command with a sentence and an exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = code.name
        self.metadata: dict[str, str] = {}


BY_ERROR: dict[type[Exception], ExitCode] = {
    errors.UnreachableError: ExitCode.UNREACHABLE,
    errors.ResourceError: ExitCode.OVERLOADED,
    errors.CallerError: ExitCode.REFUSED,
    errors.DeadlineExceededError: ExitCode.DEADLINE,
    errors.StreamInterruptedError: ExitCode.CUT_OFF,
    errors.IncompleteStreamError: ExitCode.CUT_OFF,
    errors.RequestCancelledError: ExitCode.INTERRUPTED,
    ConfigError: ExitCode.USAGE,
    CheckpointError: ExitCode.USAGE,
}


def exit_code(error: Exception) -> ExitCode:
    if isinstance(error, CommandError):
        return error.code
    kinds = (BY_ERROR[kind] for kind in type(error).__mro__ if kind in BY_ERROR)
    return next(kinds, ExitCode.FAILURE)
