"""`tiny-gpt train`, `resume` and train.py: a run, those who listen to it, and what to type next."""

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from typing import Protocol

from tiny_gpt.config import BEST_FILE, LOG_FILE, METRICS_FILE, SAMPLES_FOLDER, RunConfig, SampleConfig
from tiny_gpt.data.progress import Notice
from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.files import user_path
from tiny_gpt.inference.engine import compile_engine, must_compile
from tiny_gpt.planning.types import Plan
from tiny_gpt.run.events import Event, Finished, Prepared
from tiny_gpt.run.start import run
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.ui.console import Console
from tiny_gpt.ui.log import LogFile
from tiny_gpt.ui.metrics import MetricsFile
from tiny_gpt.ui.samples import Samples, sample_text
from tiny_gpt.ui.terminal import error, printable, quoted


class Consumer(Protocol):
    """Anything that listens to a run."""

    def consume(self, event: Event) -> None: ...


@dataclass(frozen=True)
class NextCommands:
    """What to type after a training, as this person calls the program."""

    generate: str
    train: str
    resume: str

    def cool_down(self, elapsed_s: float) -> str:
        """What ends a stopped run well, in a tenth of the time that it has had."""
        return f"{self.resume} --for {max(1, round(elapsed_s / 600))}m --cooldown 1"


def train_and_sample(config: RunConfig, resume: bool, request: RunRequest, commands: NextCommands) -> int:
    """Train, then show what the best model writes and the commands to type next. Returns the exit code."""
    plan, finished = None, None
    out_dir = user_path(config.train.out_dir)
    with contextlib.closing(Console(config, sys.stdout)) as console:
        consumers: list[Consumer] = [
            console,
            MetricsFile(out_dir / METRICS_FILE),
            LogFile(config, out_dir / LOG_FILE),
            Samples(config, out_dir / SAMPLES_FOLDER),
        ]
        for number, event in enumerate(run(config, resume, request)):
            deliver(event, consumers)
            if number == 0 and must_compile(config.model):  # before a clock runs
                deliver(Notice("compiling what writes text for this processor: about 15 seconds, once"), [console])
                compile_engine(config.model, SampleConfig().precision)
            if isinstance(event, Prepared):
                plan = event.plan
            if isinstance(event, Finished):
                finished = event
    assert finished is not None, "a run that ends without an error has finished"
    try:
        _say_what_is_next(finished, plan, config, commands)
        sys.stdout.flush()
    except OSError:  # whoever was to read this has left; the night was not for nothing
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it on its way out
    return 0 if finished.stopped_by is None else 128 + finished.stopped_by


def _say_what_is_next(finished: Finished, plan: Plan | None, config: RunConfig, commands: NextCommands) -> None:
    if finished.stopped_by is None:
        sample = replace(SampleConfig(), seed=config.train.seed)
        at = f"step {finished.best_step:,}" if config.train.is_timed else f"epoch {finished.best_epoch}"
        print(f"\nA sample from the best model ({at}), temperature {sample.temperature}:\n")
        print(printable(sample_text(finished.best_path, sample)))
    best_path = str(finished.best_path)
    checkpoint = "" if best_path == BEST_FILE else f" --checkpoint {quoted(best_path)}"
    print(f'\nWrite more with: {commands.generate}{checkpoint} --prompt "The" --temperature 0.8')
    if finished.stopped_by is not None:
        print(f"Go on where it stopped with: {commands.resume}")
        print(f"Or let it come to a good end soon with: {commands.cool_down(finished.elapsed_s)}", flush=True)
        return
    if plan is not None and plan.saturation_s < finished.elapsed_s:
        print("More time would hardly help with this text, more text would: name further files beside it.")
    elif config.train.is_timed:
        print(f"Train it further, overnight, with: {commands.resume} --for 8h")
    if all(name in DATASETS for source in config.data.data for name in source.split("|")):
        print(f"Train a night on your own text with: {commands.train}")


def deliver(event: Event, consumers: list[Consumer]) -> None:
    """Hand an event to every consumer. One that fails is dropped and named: it must not end a night."""
    for consumer in list(consumers):
        try:
            consumer.consume(event)
        except Exception as failure:
            consumers.remove(consumer)
            error(f"{type(consumer).__name__} stopped working and is left out from now on: {failure}")
