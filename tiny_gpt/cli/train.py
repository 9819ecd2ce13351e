"""`tiny-gpt train`, `tiny-gpt resume` and train.py: their arguments, turned into one training to launch."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from tyro.conf import Positional, arg

from tiny_gpt.cli.arguments import SourcesArgument, require_sources
from tiny_gpt.cli.devices import follow_rank_0
from tiny_gpt.cli.launch import ResumeMode, launch_training, launched_folder, program_name, require_not_training
from tiny_gpt.cli.overrides import (
    given_budget,
    parse_run,
    peek_flags,
    recipe_config,
    run_settings,
    without_given_choices,
)
from tiny_gpt.cli.process import run_command
from tiny_gpt.config import RecipeName, ReliabilityConfig, ReportingConfig, RunConfig, load_config
from tiny_gpt.config.checks import OPTIONAL
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.config.training import BUDGETS
from tiny_gpt.errors import UsageError
from tiny_gpt.files import remove_partial_files, user_path
from tiny_gpt.host.torchrun import is_follower
from tiny_gpt.run.folders import config_of, find_run, folder_for, unfinished


@dataclass(frozen=True)
class RunOrigin(ResumeMode):
    """Where settings come from, and what to do with an unfinished run in the same folder. Without a flag, you are asked
    about it."""

    recipe: RecipeName = "auto"
    """auto: chooses what you don't set from your text, the length of the run and the speed of this machine.
    overnight: the fixed settings of the guide to an overnight training, as in train.py."""
    config: Annotated[str, arg(metavar="FILE"), OPTIONAL] = ""
    """Use the settings of a saved config.json instead of a recipe."""


@dataclass(frozen=True)
class TrainCommand(RunConfig):
    """Train a model on your text; all files of the run go to runs/NAME.

    The only flag that you usually need is the time:
        tiny-gpt train book.txt --until 7am
        tiny-gpt train diary.txt --for 6h --first novels/
        tiny-gpt train notes/ --for 1h --start-from hf:HuggingFaceTB/SmolLM2-135M
    """

    sources: SourcesArgument = ()
    """Training text: files, folders, glob patterns, - for standard input, URLs or dataset names. The same as --data."""
    run: RunOrigin = field(default_factory=RunOrigin)
    watch: Annotated[bool, OPTIONAL] = False
    """Show the run in the browser while it trains."""
    reporting: ReportingConfig = field(default_factory=ReportingConfig)


# What `tiny-gpt resume --help` lists: how long, how it learns, where its text is, what it runs on. Other settings are
# accepted too, but not those of the model and the optimizer (run/saved_run.py).
RESUME_SETTINGS = (
    *BUDGETS,
    *("learning_rate", "cooldown", "weight_decay", "batch_size"),
    *("data", "val"),
    *("device", "devices", "precision", "backend", "grad_accum_steps"),
    *(setting.name for setting in fields(ReliabilityConfig)),
)


@dataclass(frozen=True)
class ResumeCommand(RunConfig):
    """Resume a stopped run or extend a finished one.

    For example, to give a finished run three hours more:
        tiny-gpt resume book --for 3h

    The run keeps its model, optimizer, tokenizer and text (--data if it moved).

    Other settings may be changed: those below, and more of tiny-gpt train --help.
    """

    run: Annotated[Positional[str], arg(metavar="[RUN]"), OPTIONAL] = ""
    """Folder of the run, or its name in runs/. Without it, the most recent unfinished run."""
    watch: Annotated[bool, OPTIONAL] = False
    """Show the run in the browser while it trains."""
    reporting: ReportingConfig = field(default_factory=ReportingConfig)


@dataclass(frozen=True)
class ScriptCommand(RunConfig):
    """Train a model with the settings at the top of train.py, which are the defaults below."""

    config: Annotated[str, arg(metavar="FILE"), OPTIONAL] = ""
    """Use the settings of a saved config.json instead of those in train.py."""
    run: ResumeMode = field(default_factory=ResumeMode)
    reporting: ReportingConfig = field(default_factory=ReportingConfig)


def train(args: Sequence[str]) -> int:
    """Train a model on your text."""
    origin = peek_flags(args, "recipe", "config")
    if origin["config"]:
        base = load_config(user_path(origin["config"]), RunConfig())
        # A new run with the same settings, not in the folder of the run that they come from.
        base = replace(base, train=replace(base.train, out_dir=""))
    else:
        name = origin["recipe"] or "auto"
        base = recipe_config(name, args) if name in RECIPES else RunConfig()  # the parser rejects an unknown name
    command = parse_run(TrainCommand, "tiny-gpt train", args, base)
    config = run_settings(command, command.sources)
    # A run that has begun needs its text no more.
    is_new = launched_folder() is None and not command.run.resume and not is_follower()
    if is_new and not unfinished(folder_for(config)):
        require_sources((*config.data.data, *config.data.val, *config.data.first))
    restart = [sys.executable, "-m", "tiny_gpt", "train", *args]
    return launch_training(
        config, command.run, restart, program_name(), watch=command.watch, reporting=command.reporting
    )


def resume(args: Sequence[str]) -> int:
    """Resume a stopped run or extend a finished one."""
    # Parsed twice: the flags say which run, and that run's settings are the defaults of the flags.
    preliminary = parse_run(ResumeCommand, "tiny-gpt resume", args, RunConfig(), RESUME_SETTINGS)
    if is_follower():  # only rank 0 needs the run's folder
        return follow_rank_0(preliminary)
    name = preliminary.run
    folder = launched_folder() or find_run(name)
    if launched_folder() is None:
        require_not_training(folder)
    base = without_given_choices(config_of(folder), args)
    command = parse_run(ResumeCommand, "tiny-gpt resume", args, base)
    config = run_settings(command)
    extends = given_budget(args) is not None and config.train.is_timed
    if not extends and not unfinished(folder, config.train.total_steps):
        remove_partial_files(folder)  # of a training that was killed while it wrote its report
        raise UsageError(
            f"{folder} is finished; to train it further, give more time (--for 1h), or a larger total (--epochs or "
            "--steps)",
            code="run-finished",
        )
    config = replace(config, train=replace(config.train, out_dir=str(folder)))
    # The folder is named, so that a restart resumes this run even if another one is the most recent by then. It comes
    # first: a flag such as --first takes all values that follow it.
    restart = [sys.executable, "-m", "tiny_gpt", "resume", *([] if name else [str(folder)]), *args]
    return launch_training(
        config, ResumeMode(resume=True), restart, program_name(), extends, command.watch, command.reporting
    )


def train_script(settings: Mapping[str, Any]) -> int:
    """`python3 train.py`: trains with the `settings` in that file, changed by flags."""

    def run(args: Sequence[str]) -> int:
        base = RunConfig().with_flat(settings, "train.py")
        saved = peek_flags(args, "config")["config"]
        if saved:
            base = load_config(user_path(saved), base)
        command = parse_run(ScriptCommand, "train.py", args, base)
        restart = [sys.executable, os.path.abspath(sys.argv[0]), *args]
        return launch_training(run_settings(command), command.run, restart, program="", reporting=command.reporting)

    return run_command(run, sys.argv[1:])
