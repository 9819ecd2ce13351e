"""What every command runs in: errors become messages and exit codes, and waiting threads leave the cores free.

| exit code | meaning                                        |
|-----------|------------------------------------------------|
| 0         | success                                        |
| 1         | unexpected error                               |
| 2         | invalid argument or setting                    |
| 3         | unusable text, config or model file            |
| 4         | training diverged                              |
| 5         | no disk space, no memory, or not writable      |
| 130, 143  | stopped by Ctrl+C or SIGTERM; progress is kept |
"""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from tiny_gpt.cli.natural import natural_arguments
from tiny_gpt.errors import BadInputError, OutOfResourcesError, TinyGPTError, UsageError
from tiny_gpt.host.heartbeat import heartbeat
from tiny_gpt.host.signals import Stopped
from tiny_gpt.host.threads import limit_thread_spinning
from tiny_gpt.host.torchrun import rank_in_environment
from tiny_gpt.ui.terminal import error, make_safe

Command = Callable[[Sequence[str]], int]


def run_command(command: Command, args: Sequence[str], needs_output: bool = True) -> int:
    """Run `command` with `args`; returns the exit code. Every error becomes a line or two on standard error.

    --debug adds the traceback and the error's code; with --json the error is also a JSON object on standard output.
    `needs_output`: whether the command fails if nobody can read what it prints.
    """
    limit_thread_spinning()
    code = _run_command(command, args, needs_output)
    if heart := heartbeat():
        heart.leave(code)
        # torchrun takes every other code for a crash; the watchdog knows the right one.
        if rank_in_environment() is not None and code != TinyGPTError.exit_code:
            return 0
    return code


def _run_command(command: Command, args: Sequence[str], needs_output: bool) -> int:
    debug, as_json = "--debug" in args, "--json" in args
    has_output = open_standard_streams()
    make_safe(sys.stdout)
    try:
        if needs_output and not has_output:
            message = "standard output is closed, so the result would be lost; leave out >&-, or write to a file"
            raise OutOfResourcesError(message, code="output-closed")
        _check_working_folder()
        code = command(natural_arguments([arg for arg in args if arg != "--debug"]))
        sys.stdout.flush()  # a full disk is an error here, not a silent loss when the interpreter exits
        return code
    except SystemExit as leaving:  # from the argument parser: --help, or a usage error that it has explained
        return leaving.code if isinstance(leaving.code, int) else UsageError.exit_code
    except KeyboardInterrupt as stop:
        error("\nInterrupted. Everything already saved is intact.")
        return stopped_code(stop)
    except BrokenPipeError:  # the reader has closed, as `| head` does
        discard_output()
        return 0
    except Exception as failure:
        if isinstance(failure, OSError) and failure.filename is None:  # perhaps of standard output, and again at exit
            _discard_unless_writable()
        if debug:
            traceback.print_exc()
        known = to_known_error(failure)
        if as_json:
            print(json.dumps({"error": {"code": known.code, "message": str(known), "exit_code": known.exit_code}}))
        error(f"error [{known.code}]: {known}" if debug else f"error: {known}")
        return known.exit_code


def stopped_code(stop: BaseException) -> int:
    """The exit code of a program that `stop` ended: 128 + the signal, Ctrl+C's where that is not known."""
    return 128 + (stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT)


def to_known_error(failure: Exception) -> TinyGPTError:
    """`failure` as an error with a message for the user: our own as it is, the system's translated."""
    if isinstance(failure, TinyGPTError):
        return failure
    if isinstance(failure, MemoryError) or "out of memory" in str(failure) or "can't allocate memory" in str(failure):
        return OutOfResourcesError(
            "out of memory: reduce --batch-size (such as 32) or --block-size (such as 64), or split each batch "
            "(--grad-accum-steps 2)",
            code="out-of-memory",
        )
    if isinstance(failure, OSError) and failure.errno is not None:
        return _known_os_error(failure)
    if isinstance(failure, RuntimeError) and "Symlink loop" in str(failure):  # of pathlib, before Python 3.13
        return BadInputError(f"{failure}: a link that leads to itself; name another path", code="path-is-a-link-loop")
    if isinstance(failure, ValueError) and "embedded null" in str(failure):
        return BadInputError("a name holds a zero byte, which no file can have in its name", code="name-with-zero-byte")
    message = f"{type(failure).__name__}: {failure}\nThis is a bug in tiny_gpt; --debug shows where."
    return TinyGPTError(message, code="unexpected")


def _known_os_error(failure: OSError) -> TinyGPTError:
    where = f" ({failure.filename})" if failure.filename else ""
    reason = failure.strerror or str(failure)
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfResourcesError(f"no space left on the disk{where}; free some and try again", code="disk-full")
    if failure.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutOfResourcesError(f"access denied{where}: {reason}; check permissions", code="access-denied")
    if failure.filename:
        return BadInputError(f"cannot use {failure.filename}: {reason}", code="path-unusable")
    return TinyGPTError(f"the operating system reports: {reason}", code="system-error")


def open_standard_streams() -> bool:
    """Open the null device in place of each standard stream that is closed; returns whether output was open.

    Otherwise the next file that is opened gets the stream's number, and whatever a library prints goes into that file.
    """
    is_open = [stream is not None for stream in (sys.stdin, sys.stdout, sys.stderr)]
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if is_open[number]:
            continue
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    return is_open[1]


def _check_working_folder() -> None:
    """Raise BadInputError if the working folder has been deleted: some libraries end the process then."""
    try:
        os.getcwd()
    except OSError as failure:
        message = "the folder that you are in was deleted or cannot be read; change to another one (cd) and try again"
        raise BadInputError(message, code="working-folder-gone") from failure


def _discard_unless_writable() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()


def discard_output() -> None:
    """Send standard output nowhere, once its reader has gone: the interpreter still flushes it when it exits."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
