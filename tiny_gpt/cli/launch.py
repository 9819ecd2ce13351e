"""From parsed settings to a training process: which folder, resumed or new, and under the watchdog or not.

With the watchdog, or on several devices, `launch_training` runs more than once. The first process decides where the run
goes, asking the user if need be, and becomes the watchdog. It starts the same command again as a child process, which
finds the decision in an environment variable and trains.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from tiny_gpt.cli.devices import announce, follow_rank_0, join_ranks, n_processes, torchrun_command
from tiny_gpt.cli.follow_up import FollowUp
from tiny_gpt.cli.report import report_at_the_end
from tiny_gpt.cli.watch import start_beside_training
from tiny_gpt.config import ReportingConfig, RunConfig
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.errors import UsageError
from tiny_gpt.files import quoted
from tiny_gpt.host.clocks import system_clocks
from tiny_gpt.host.heartbeat import heartbeat, is_watched, restart_reason
from tiny_gpt.host.signals import raise_stops
from tiny_gpt.host.torchrun import is_follower, is_restarted, rank_in_environment
from tiny_gpt.run.folders import find_model, folder_for, newest_step, unfinished
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.ui.terminal import error

# Holds a Launch as JSON, for the child process.
LAUNCH_VARIABLE = "TINY_GPT_LAUNCH"


@dataclass(frozen=True)
class ResumeMode:
    """What to do with an unfinished run in the same folder. Without a flag, you are asked."""

    resume: Annotated[bool, OPTIONAL] = False
    """Resume the unfinished run."""
    new: Annotated[bool, OPTIONAL] = False
    """Start a new run; the files of the unfinished one are kept."""

    def __post_init__(self) -> None:
        if self.resume and self.new:
            raise UsageError("--resume and --new: give only one of them", code="resume-and-new")


@dataclass(frozen=True)
class Launch:
    """What was decided about a training before it started; a watchdog hands it to its child process."""

    run_dir: str
    is_resumed: bool
    extends: bool
    """Whether the budget is added to what the run has already had."""
    requested_at: float
    """When the user gave the command, as time.time(): the start of a timed budget."""
    elapsed: float
    """The same moment by the clock `elapsed` of host/clocks.py."""
    program: str
    """How the user calls `tiny-gpt`; "" for train.py."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def launch_training(
    config: RunConfig,
    mode: ResumeMode,
    restart_command: Sequence[str],
    program: str,
    extends: bool = False,
    watch: bool = False,
    reporting: ReportingConfig | None = None,
) -> int:
    """Train `config` under the watchdog, or in this process. Returns the exit code.

    `restart_command` starts the same training again. `program` and `extends` are those of Launch. `watch` shows the
    run in the browser meanwhile. The process that the user started does what `reporting` says, so it is done once,
    however often the watchdog restarts the training.
    """
    if is_follower():
        return follow_rank_0(config)
    if rank_in_environment() is not None:
        raise_stops()  # before the heartbeat tells the parent where to send signals
    from_parent = os.environ.pop(LAUNCH_VARIABLE, None)
    if from_parent is None:
        if is_restarted() and newest_step(folder_for(config)) >= 0:
            mode = ResumeMode(resume=True)
        run_dir, is_resumed = resolve_run_dir(config, mode)
        # A time for a finished run comes on top of what it has had; for an unfinished run it is the total.
        extends = extends or (is_resumed and config.train.is_timed and unfinished(run_dir) is None)
        launch = Launch(str(run_dir), is_resumed, extends, time.time(), system_clocks().elapsed(), program)
        place = FollowedFolder(run_dir)
        follow_up = FollowUp(reporting or ReportingConfig(), place, is_resumed, program)
        return follow_up.accompany(lambda: _train_or_watch(config, launch, restart_command, watch, place))
    launch = Launch.from_json(from_parent)
    if restart_reason():  # an earlier child process has begun the run
        launch = replace(launch, is_resumed=True)
    return _train_or_watch(config, launch, restart_command, watch, FollowedFolder(Path(launch.run_dir)))


def _train_or_watch(
    config: RunConfig, launch: Launch, restart_command: Sequence[str], watch: bool, place: FollowedFolder
) -> int:
    """`place` is the run's folder, wherever it is moved."""
    if is_watched() or rank_in_environment() is not None:
        return _train(config, launch)
    if watch:
        start_beside_training(Path(launch.run_dir))
    n_devices = n_processes(config)
    with report_at_the_end(place):
        if config.reliability.watchdog or n_devices > 1:
            progress = _Progress(launch, place)
            return _watch(progress, restart_command, n_devices, config.reliability.watchdog)
        return _train(config, launch)


def _watch(progress: "_Progress", command: Sequence[str], n_devices: int, restarts: bool) -> int:
    """Train in a child process, or in several of them under torchrun, which always needs a parent to take its exit code
    and its signals from; `restarts`: after a failure, begin again from the last checkpoint."""
    from tiny_gpt.host.limits import Limits
    from tiny_gpt.host.watchdog import watch

    if n_devices > 1:
        command = torchrun_command(command, n_devices)
        announce(command, n_devices)
    limits = Limits() if restarts else Limits(max_restarts=0)
    os.environ[LAUNCH_VARIABLE] = progress.launch.to_json()
    sys.stdout.flush()  # before the child writes to the same file
    try:
        return watch(command, command, progress.newest_step, error, limits, is_group=n_devices > 1)
    finally:
        del os.environ[LAUNCH_VARIABLE]


class _Progress:
    """How far the launched run is, wherever its folder is by now."""

    def __init__(self, launch: Launch, place: FollowedFolder) -> None:
        self.launch = launch
        self._place = place

    def newest_step(self) -> int:
        """The step of the newest checkpoint. If the run's folder has been moved, the next child process is sent after
        it."""
        folder = self._place.path()
        if str(folder) != self.launch.run_dir:
            self.launch = replace(self.launch, run_dir=str(folder))
            os.environ[LAUNCH_VARIABLE] = self.launch.to_json()
        return newest_step(folder)


def _train(config: RunConfig, launch: Launch) -> int:
    heartbeat()  # before torch is imported, which takes seconds: see Heartbeat
    join_ranks(config)
    from tiny_gpt.cli.session import NextCommands, train_and_sample
    from tiny_gpt.training.budget import RunRequest

    start_from = config.train.start_from
    if start_from and not launch.is_resumed:  # a resumed run continues from its checkpoint instead
        start_from = str(find_model(start_from))
    config = replace(config, train=replace(config.train, out_dir=launch.run_dir, start_from=start_from))
    return train_and_sample(
        config,
        launch.is_resumed,
        RunRequest(launch.requested_at, launch.elapsed, launch.extends, bool(restart_reason())),
        NextCommands.of(launch.program, launch.run_dir),
    )


def resolve_run_dir(config: RunConfig, mode: ResumeMode) -> tuple[Path, bool]:
    """The folder of the run, and whether the run in it is to be resumed. Asks the user where flags leave it open.

    Raises UsageError if there is nothing to resume, a run that is still training, or an unfinished one and no user who
    answers.
    """
    folder = folder_for(config, is_new=mode.new, is_resumed=mode.resume)
    require_not_training(folder)
    found = unfinished(folder, config.train.total_steps if mode.resume else 0)
    if mode.resume:
        is_begun = newest_step(folder) >= 0
        if found is None and not (is_begun and config.train.is_timed):
            state = "is finished" if is_begun else "has no checkpoint"
            raise UsageError(f"--resume: {folder} {state}; leave out --resume to start a new run", code="not-resumable")
        return folder, True
    if found is None or mode.new:
        return folder, False
    with contextlib.suppress(EOFError):  # Ctrl+D: there is no answer
        while sys.stdin.isatty() and sys.stdout.isatty():
            answer = input(f"{found}.\nResume it? [Y]es, [n]ew run: ").strip().lower()
            if answer in ("", "y", "yes"):
                return folder, True
            if answer in ("n", "new", "no"):
                return folder_for(config, is_new=True), False
    raise UsageError(f"{found}; give --resume to resume it, or --new to start a new run", code="run-unfinished")


def require_not_training(folder: Path) -> None:
    """Raise UsageError while another process trains in `folder`."""
    from tiny_gpt.run.output_folder import is_in_use

    if is_in_use(folder):
        name = quoted(str(folder))
        raise UsageError(
            f"{folder} is being trained right now: see it with tiny-gpt watch {name}; for another run beside it, give "
            "--new to tiny-gpt train, or another --out-dir",
            code="run-in-training",
        )


def launched_folder() -> Path | None:
    """Where the run is, in a process that the watchdog has started; the folder may have another name than the user
    gave."""
    launch = os.environ.get(LAUNCH_VARIABLE)
    return Path(Launch.from_json(launch).run_dir) if launch else None


def program_name() -> str:
    """How the user called `tiny-gpt`, ready to be typed again: by its name if it is on PATH."""
    if shutil.which("tiny-gpt"):
        return "tiny-gpt"
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{quoted(sys.orig_argv[0])} -m tiny_gpt"
    return sys.argv[0]
