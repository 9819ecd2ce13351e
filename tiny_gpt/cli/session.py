"""One training in this process: the run, the consumers of its events, and what to type next.

Imports torch; `launch` starts it.
"""

import contextlib
import sys
from dataclasses import dataclass
from typing import Self

from tiny_gpt.cli.process import discard_output
from tiny_gpt.config import BEST_FILE, RunConfig, SampleConfig
from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.files import quoted
from tiny_gpt.host.signals import StopRequest
from tiny_gpt.planning.types import Plan
from tiny_gpt.run.events import Finished, Prepared
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.ui.console import Console
from tiny_gpt.ui.consumers import RecordedRun
from tiny_gpt.ui.samples import Samples
from tiny_gpt.ui.terminal import printable

# The time to train further that is proposed at most, and the least of what a run has had that is worth proposing.
NIGHT_S, MIN_MORE = 8 * 3600.0, 0.2


@dataclass(frozen=True)
class NextCommands:
    """What to type after a training, spelled as this user calls the program."""

    generate: str
    train: str
    resume: str

    @classmethod
    def of(cls, program: str, run_dir: str) -> Self:
        """`program` is how `tiny-gpt` was called, or "" for train.py."""
        folder = quoted(run_dir)
        if program:
            return cls(f"{program} generate", f"{program} train my_text.txt --for 8h", f"{program} resume {folder}")
        out_dir = "" if run_dir == "." else f" --out-dir {folder}"
        return cls("python3 inference.py", "python3 train.py --data my_text.txt", f"python3 train.py --resume{out_dir}")

    def finish_soon(self, elapsed_s: float) -> str:
        """Resumes a stopped run just to decay its learning rate to zero, in a tenth of the time that it has trained."""
        return f"{self.resume} --for {max(1, round(elapsed_s / 600))}m --cooldown 1"


def train_and_sample(config: RunConfig, resume: bool, request: RunRequest, commands: NextCommands) -> int:
    """Train, then print a sample of the best model and the commands to type next. Returns the exit code."""
    plan, finished = None, None
    with contextlib.closing(Console(config, sys.stdout)) as console:
        recorded = RecordedRun(config, [console])
        recorded.samples.show = console.show_sample
        for event in recorded.train(resume, request, StopRequest(to_the_end=True)):
            if isinstance(event, Prepared):
                plan = event.plan
            if isinstance(event, Finished):
                finished = event
    assert finished is not None, "a run ends with Finished or raises"
    try:
        _print_sample_and_next_commands(finished, plan, config, commands, recorded.samples)
        sys.stdout.flush()
    except OSError:  # the reader has closed; the training is complete all the same
        discard_output()
    return 0 if finished.stopped_by is None else 128 + finished.stopped_by


def _print_sample_and_next_commands(
    finished: Finished, plan: Plan | None, config: RunConfig, commands: NextCommands, samples: Samples
) -> None:
    if finished.stopped_by is None:
        at = f"step {finished.best_step:,}" if config.train.is_timed else f"epoch {finished.best_epoch}"
        print(f"\nA sample from the best model ({at}), temperature {SampleConfig().temperature}:\n")
        print(printable(samples.final_text(finished)))
    best_path = str(finished.best_path)
    checkpoint = "" if best_path == BEST_FILE else f" --checkpoint {quoted(best_path)}"
    _print_command("Generate text", f'{commands.generate}{checkpoint} --prompt "The" --temperature 0.8')
    if finished.stopped_by is not None:
        _print_command("Resume training", commands.resume)
        _print_command("Or finish it soon", commands.finish_soon(finished.elapsed_s))
        return
    more_s = NIGHT_S if plan is None else min(NIGHT_S, plan.saturation_s - finished.elapsed_s)
    if more_s < MIN_MORE * finished.elapsed_s:
        print("\nMore training time would hardly improve this model. More text would: add files.")
    elif config.train.is_timed:
        when = ", overnight" if more_s == NIGHT_S else ""
        _print_command(f"Train it further{when}", f"{commands.resume} --for {_short_duration(more_s)}")
    if all(name in DATASETS for source in config.data.data for name in source.split("|")):
        _print_command("Train on your own text", commands.train)


def _print_command(purpose: str, command: str) -> None:
    """A command on a line of its own, so that it can be copied whole."""
    print(f"\n{purpose}:\n  {command}", flush=True)


def _short_duration(seconds: float) -> str:
    """As --for takes it, rounded down: 28800 -> 8h."""
    hours, minutes = divmod(max(60, int(seconds)) // 60, 60)
    return f"{hours}h" if hours and not minutes else f"{hours}h{minutes}m" if hours else f"{minutes}m"
