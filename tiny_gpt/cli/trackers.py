"""`tiny-gpt track`, and the processes beside a training that run it: one for each tracker."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.cli.arguments import parse
from tiny_gpt.config import TRACKERS_FOLDER, TrackerName
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.errors import UsageError
from tiny_gpt.files import quoted
from tiny_gpt.run.folders import find_run_to_show
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.trackers.registry import TRACKERS, is_installed
from tiny_gpt.ui.terminal import error, printable

# Holds when the training was asked for, as time.time(): the tracker waits for it, and follows it until its standard
# input closes, as it does even if the process that started it is killed.
SINCE_VARIABLE = "TINY_GPT_TRACK_SINCE"
_POLL_S = 2.0
# At the end: how long the user waits for a tracker, and after which time it gives up in the background.
TRACKER_PATIENCE_S = 60.0
LAST_S = 900.0


@dataclass(frozen=True)
class TrackCommand:
    """Send a run's metrics and samples to a tracker, also while it trains."""

    to: TrackerName
    """Where to."""
    run: Annotated[Positional[str], arg(metavar="[RUN]"), OPTIONAL] = ""
    """Folder of the run, or its name in runs/. Without it, the newest run."""


class Stop(threading.Event):
    """Set when the training is over; `state` says how it ended, "" if that is for the run's folder to say."""

    state = ""


def track(args: Sequence[str]) -> int:
    """Send a run to TensorBoard, Weights & Biases, Trackio or MLflow."""
    command = parse(TrackCommand, "tiny-gpt track", args)
    if not is_installed(command.to):
        raise UsageError(_not_installed(command.to), code="tracker-not-installed")
    since = os.environ.pop(SINCE_VARIABLE, None)
    if since is not None:
        return _follow_training(Path(command.run), command.to, float(since))
    from tiny_gpt.trackers.follower import Follower, is_trained_now, sole_sender

    place, stop = FollowedFolder(find_run_to_show(command.run)), Stop()
    threading.Thread(target=_stop_after, args=(lambda: is_trained_now(place.path()), stop), daemon=True).start()
    with sole_sender(place.path(), command.to):
        follower = Follower(place, command.to, _log)
        is_complete = follower.follow(stop)
    sent = f"Sent {follower.n_sent:,} evaluations and samples of {place.path()}."
    print(printable(f"{sent} {_view(command.to, place.path())}"))
    return 0 if is_complete else 1


def _follow_training(run_dir: Path, name: TrackerName, since: float) -> int:
    """Beside a training: wait until it begins, then follow it until the process that started this one says its end."""
    from tiny_gpt.trackers.follower import Follower, has_begun, is_trained_now, sole_sender

    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)
    place, stop = FollowedFolder(run_dir), Stop()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_listen, args=(lambda: is_trained_now(place.path()), stop), daemon=True).start()
    while not has_begun(place.path(), since):
        if stop.wait(_POLL_S) and not has_begun(place.path(), since):
            return 0
    with sole_sender(place.path(), name), open(_log_file(place.path(), name), "ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        follower = Follower(place, name, _log)
        return 0 if follower.follow(stop) else 1


def _listen(is_trained: Callable[[], bool], stop: Stop) -> None:
    """Stop when standard input says how the training ended. If it only closes, its writer was killed, and the training
    may continue alone."""
    said = sys.stdin.readline().strip()
    if said:
        stop.state = said
        stop.set()
    else:
        _stop_after(is_trained, stop)
    time.sleep(LAST_S)
    os._exit(1)  # the tracker hangs


def _stop_after(is_trained: Callable[[], bool], stop: Stop) -> None:
    while is_trained():
        time.sleep(_POLL_S)
    stop.set()


def _tell(process: "subprocess.Popen[bytes]", line: str) -> None:
    """Write `line` to the standard input of a process, which may have ended, and close it."""
    assert process.stdin is not None, "it is a pipe"
    with contextlib.suppress(OSError), process.stdin:
        process.stdin.write(line.encode())


class TrackerProcesses:
    """The trackers of one training."""

    def __init__(self, names: Sequence[TrackerName], place: FollowedFolder, is_resumed: bool, program: str) -> None:
        """A resumed run without `names` continues in the trackers that it has. `program` is how to call `tiny-gpt`."""
        self._place, self._program = place, program
        known = [name for name in TRACKERS if (place.path() / TRACKERS_FOLDER / f"{name}.json").exists()]
        self._names = list(dict.fromkeys(names or (known if is_resumed else ())))
        self._processes: dict[TrackerName, subprocess.Popen[bytes]] = {}
        self._since = 0.0

    def start(self) -> None:
        """Start a process for each tracker that is installed; say what to do about the others."""
        self._since = time.time()
        for name in self._names:
            if is_installed(name):
                self._start(name)
            else:
                error(f"{_not_installed(name)}. The training runs without it; later, {self._remedy(name)}")

    def finish(self, state: str) -> None:
        """Say how the training ended, wait a while for the trackers to get the rest, and report what they have."""
        for name, process in list(self._processes.items()):
            if process.poll() not in (None, 0):
                _tell(process, "")
                self._start(name)  # it has crashed; a new process sends what is missing
        deadline = time.monotonic() + TRACKER_PATIENCE_S
        for process in self._processes.values():
            _tell(process, f"{state}\n")
        for name, process in self._processes.items():
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"{name} is still being sent in the background; {self._remedy(name)}")
                continue
            log = _log_file(self._place.path(), name)
            if code:
                error(f"{name} is incomplete: see {log}; {self._remedy(name)}")
            elif log.exists():
                print(_view(name, self._place.path()))

    def _start(self, name: TrackerName) -> None:
        path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
        environment = os.environ | {SINCE_VARIABLE: repr(self._since), "PYTHONPATH": path}
        command = [sys.executable, "-m", "tiny_gpt", "track", str(self._place.path()), "--to", name]
        try:
            # In its own session: Ctrl+C and a closed terminal are for the training.
            self._processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as failure:
            error(f"{name} could not be started: {failure}; {self._remedy(name)}")

    def _remedy(self, name: TrackerName) -> str:
        return f"to send what is missing: {self._program} track {quoted(str(self._place.path()))} --to {name}"


def _not_installed(name: TrackerName) -> str:
    return f"{name} is not installed: {quoted(sys.executable)} -m pip install {TRACKERS[name].package}"


def _view(name: TrackerName, run_dir: Path) -> str:
    return f"To see it in {name}: {TRACKERS[name].view.format(folder=quoted(str(run_dir / TRACKERS_FOLDER)))}"


def _log_file(run_dir: Path, name: TrackerName) -> Path:
    return run_dir / TRACKERS_FOLDER / f"{name}.log"


def _log(line: str) -> None:
    error(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")
