"""What can go wrong for a person, each with the exit code a shell sees.

A message says what is wrong, what was given and what to do, in a line or two. Anything else that escapes
is a bug of ours.
"""


class TinyGPTError(Exception):
    """A failure that was foreseen; its text is for the person who typed the command."""

    exit_code = 1


class UsageError(TinyGPTError):
    """A setting or flag with an impossible value."""

    exit_code = 2


class BadInputError(TinyGPTError):
    """A text, config or model file that cannot be used."""

    exit_code = 3


class DivergedError(TinyGPTError):
    """The loss stopped being a number."""

    exit_code = 4


class OutOfResourcesError(TinyGPTError):
    """No disk, no permission to write, or no memory."""

    exit_code = 5


class RestartRequestedError(TinyGPTError):
    """The watchdog asked the training to save and to make way for a fresh process."""

    exit_code = 75
