"""What can go wrong for a user, each with the exit code a shell sees and a stable code that tests and tools can match.

A message says what is wrong, what was given and what to do, in a line or two. Anything else that escapes
is a bug of ours.
"""


class TinyGPTError(Exception):
    """An error we foresaw; its text is for the person who typed the command."""

    exit_code = 1

    def __init__(self, message: str, code: str = "") -> None:
        """`code` is a short slug such as "text-too-short": it stays the same when the wording changes."""
        super().__init__(message)
        self.code = code


class UsageError(TinyGPTError):
    """A setting or flag with an impossible value."""

    exit_code = 2


class BadInputError(TinyGPTError):
    """A text, config or model file that cannot be used."""

    exit_code = 3


class DivergedError(TinyGPTError):
    """The loss became NaN or infinite, or spiked, and rolling back did not help."""

    exit_code = 4


class OutOfResourcesError(TinyGPTError):
    """No disk, no permission to write, or no memory."""

    exit_code = 5


class RestartRequestedError(TinyGPTError):
    """The watchdog asked the training to save and to exit, so that a fresh process can resume it."""

    exit_code = 75
