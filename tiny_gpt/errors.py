"""The errors that users can cause or meet, each with an exit code for the shell and a code for programs and tests.

A message says what is wrong, what was given and what to do, in one or two lines. Any other exception that reaches the
user is a bug.
"""


class TinyGPTError(Exception):
    """An anticipated error; its text is for the user."""

    exit_code = 1

    def __init__(self, message: str, code: str = "") -> None:
        """`code` is a short slug such as "text-too-short"; it stays the same when the wording changes."""
        super().__init__(message)
        self.code = code


def first_line(error: BaseException) -> str:
    """The first line of another library's exception, or the name of its class if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UsageError(TinyGPTError):
    """An invalid flag or setting."""

    exit_code = 2


class BadInputError(TinyGPTError):
    """A text, config or model file that cannot be used."""

    exit_code = 3


class DivergedError(TinyGPTError):
    """The loss became NaN or infinite, or spiked, and rolling back did not help."""

    exit_code = 4


class OutOfResourcesError(TinyGPTError):
    """Out of disk space or memory, or no permission to write."""

    exit_code = 5


class RestartRequestedError(TinyGPTError):
    """The watchdog has asked the training process to save and exit; a fresh process then resumes it."""

    exit_code = 75
