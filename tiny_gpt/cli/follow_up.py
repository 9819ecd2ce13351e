"""What accompanies a training and what follows it: trackers, messages, and a command of the user's.

All of it happens in the process that the user started, or in processes of their own: under the watchdog it survives a
crash of the training, and nothing here can slow or end one.
"""

import os
import subprocess
import time
from collections.abc import Callable

from tiny_gpt.cli.process import discard_output, stopped_code, to_known_error
from tiny_gpt.cli.trackers import TrackerProcesses
from tiny_gpt.config import ReportingConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.host.notify import fault_of, post_to_all
from tiny_gpt.host.signals import STOPPED_CODES
from tiny_gpt.run.ending import Ending, ending_of
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.ui.ending import message_about
from tiny_gpt.ui.terminal import error, printable

# A training that fails sooner than this, before its first step, fails before the eyes of its user.
WATCHED_S = 60.0


class FollowUp:
    """Of one training, from before its first process to after its last."""

    def __init__(self, settings: ReportingConfig, place: FollowedFolder, is_resumed: bool, program: str) -> None:
        """`program` is how the user calls `tiny-gpt`; "" for train.py. Raises UsageError for an impossible address."""
        self._addresses, self._command, self._place = settings.addresses(), settings.then, place
        for address in self._addresses:
            if fault := fault_of(address):  # the address itself may be a secret
                raise UsageError(f"--notify: what you gave {fault}", code="notify-address-unusable")
        self._trackers = TrackerProcesses(settings.track, place, is_resumed, program or "tiny-gpt")

    def accompany(self, train: Callable[[], int]) -> int:
        """Run `train`, then report how it ended. Returns its exit code, and raises what it raises."""
        started_at = time.time()
        self._trackers.start()
        try:
            code = train()
        except BaseException as failure:
            known = to_known_error(failure) if isinstance(failure, Exception) else None
            self._report(known.exit_code if known else stopped_code(failure), started_at, str(known or ""))
            raise
        self._report(code, started_at)
        return code

    def _report(self, exit_code: int, started_at: float, reason: str = "") -> None:
        """Messages first: the trackers may need a while, and the command may turn the machine off."""
        ending = ending_of(self._place.path(), exit_code, started_at, reason)
        is_worth_it = ending.has_begun or time.time() - started_at > WATCHED_S
        if self._addresses and is_worth_it:
            _say(*post_to_all(self._addresses, message_about(ending)))
        self._trackers.finish(ending.status)
        if self._command and is_worth_it and exit_code not in STOPPED_CODES:
            _run(self._command, ending)


def _run(command: str, ending: Ending) -> None:
    """Run the user's command in a shell, with its output where the training's was."""
    _say(f"Running: {command}")
    try:
        done = subprocess.run(command, shell=True, env=os.environ | ending.environment(), stdin=subprocess.DEVNULL)
    except (OSError, ValueError) as failure:
        error(f"--then: could not run the command: {failure}")
        return
    if done.returncode:
        error(f"--then: the command ended with exit code {done.returncode}")


def _say(*lines: str) -> None:
    """Print, unless the terminal is gone: the command has to run all the same."""
    try:
        for line in lines:
            print(printable(line), flush=True)
    except OSError:
        discard_output()
