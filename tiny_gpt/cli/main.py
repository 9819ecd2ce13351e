"""The command `tiny-gpt VERB`, and what the two root scripts share with it. Thin: parse, call, print, exit code.

Importing this, and `--help`, do not import torch.
"""

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from tiny_gpt import __version__
from tiny_gpt.cli.arguments import (
    SCRIPT,
    Beginning,
    DataCommand,
    DoctorCommand,
    EvalCommand,
    ExportCommand,
    GenerateCommand,
    GenerateScript,
    ImportCommand,
    PlanCommand,
    ResumeCommand,
    ScriptCommand,
    TrainCommand,
    told_as,
)
from tiny_gpt.config import BUDGETS, DEFAULT_HEAD_DIM, RunConfig, SampleConfig, TrainConfig, flag, load_config
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.config.training import more_than_one_budget
from tiny_gpt.errors import OutOfResourcesError, TinyGPTError, UsageError
from tiny_gpt.files import user_path
from tiny_gpt.host.heartbeat import heartbeat, is_watched, restart_reason
from tiny_gpt.host.watchdog import watch
from tiny_gpt.run.folders import config_of, find_model, find_run, folder_for, newest_step, unfinished
from tiny_gpt.ui.terminal import error, make_safe, quoted

# Set for the process that trains: what its parent has settled, as JSON [folder, goes on, name of this program, when it
# was asked for, whether its time comes on top].
SETTLED = "TINY_GPT_SETTLED"

# The time of a training of which nothing is said; `resume RUN --for 8h` makes a night of it.
FIRST_LOOK = "5m"

Command = TypeVar("Command", bound=RunConfig)

FLAT = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def main(argv: Sequence[str] | None = None) -> int:
    """`tiny-gpt VERB ...`; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        print(f"tiny-gpt {__version__}")
        return 0
    if args and args[0] in VERBS:
        return guarded(VERBS[args[0]], args[1:])
    if args and args[0] not in ("-h", "--help"):
        error(f"tiny-gpt: there is no command {args[0]!r}; try tiny-gpt --help")
        return UsageError.exit_code
    verbs = "\n".join(f"  {name:<10} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items())
    print(
        "usage: tiny-gpt COMMAND [...]\n\nTrain a small language model on your own text, on your own computer.\n\n"
        f"{verbs}\n\ntiny-gpt COMMAND --help tells the rest. --debug shows the traceback of an error."
    )
    return 0


def train(args: Sequence[str]) -> int:
    """Train a model on your text; it goes to a folder in runs/."""
    start = _given(args, "recipe", "config")
    recipe = start["recipe"] or "auto"
    if start["config"]:
        base = load_config(user_path(start["config"]), RunConfig())
        base = replace(base, train=replace(base.train, out_dir=""))  # the same again, beside the run that it is of
    else:
        base = _recipe(recipe, args) if recipe in RECIPES else RunConfig()  # of which the parser tells
    command = _parsed(TrainCommand, "tiny-gpt train", args, base)
    data = replace(command.data, data=command.sources) if command.sources else command.data
    config = replace(_settings(command), data=data)
    return _train(config, command.start, [sys.executable, "-m", "tiny_gpt", "train", *args], _me())


def _recipe(name: str, args: Sequence[str]) -> RunConfig:
    """The recipe called `name`, as far as `args` leave it open; a first look where it says nothing of how long."""
    base = RECIPES[name]
    if name == "auto":
        base = replace(base, train=replace(base.train, for_=FIRST_LOOK))
    return _said(base, args)


def _parsed(
    command: type[Command], prog: str, args: Sequence[str], base: RunConfig, is_of_run: bool = False
) -> Command:
    """What `args` say, the settings of `base` where they say nothing; leaves the program after --help, for which
    `is_of_run` says that a run which is not known yet has the settings."""
    about = command.__doc__ or ""
    base = replace(base, train=_without_budget(base.train, args))
    if {"-h", "--help"} & set(args):
        if is_of_run:
            base = told_as(base, base.to_flat(), "the run's")
        elif base.train.auto:
            about += '\n\n"chosen" means: from your text, the time and this machine. What you give stays.'
            base = told_as(base, base.train.auto, "chosen")
    default = command(base.model, base.data, base.train, base.reliability)
    return tyro.cli(command, prog=prog, description=about, args=args, default=default, config=FLAT)


def _said(config: RunConfig, args: Sequence[str]) -> RunConfig:
    """`config` with no more left to the recipe than what `args` do not say."""
    given = _given(args, *config.train.auto)
    auto = tuple(name for name in config.train.auto if given[name] is None)
    model, n_head = config.model, given.get("n_head")
    if n_head and n_head.isdecimal() and "d_model" in auto:  # a width that these heads divide, until one is chosen
        model = replace(model, d_model=DEFAULT_HEAD_DIM * max(1, int(n_head)))
    return replace(config, model=model, train=replace(config.train, auto=auto))


def plan(args: Sequence[str]) -> int:
    """Say what a training would be, and how good: model, time, memory, expected loss."""
    base = _recipe("auto", args)
    command = _parsed(PlanCommand, "tiny-gpt plan", args, base)
    data = replace(command.data, data=command.sources) if command.sources else command.data
    from tiny_gpt.cli.plan import show_plan

    return show_plan(replace(_settings(command), data=data), command.json)


def resume(args: Sequence[str]) -> int:
    """Go on with a run that was stopped, exactly where its newest checkpoint is."""
    name = _parsed(ResumeCommand, "tiny-gpt resume", args, RunConfig(), is_of_run=True).run
    folder = find_run(name)
    base = _said(config_of(folder), args)
    config = _settings(_parsed(ResumeCommand, "tiny-gpt resume", args, base))
    is_more = bool(_budgets_given(args)) and config.train.is_timed
    if not is_more and not unfinished(folder, config.train.total_steps):
        raise UsageError(
            f"{folder} is finished; to train it further give more time (--for 1h), or more epochs or steps than it had "
            "(--epochs N)"
        )
    config = replace(config, train=replace(config.train, out_dir=str(folder)))
    # Named, so that a training started again goes on with this run, whichever was worked on last by then.
    again = [sys.executable, "-m", "tiny_gpt", "resume", *args, *([] if name else [str(folder)])]
    return _train(config, Beginning(resume=True), again, _me(), is_more)


def train_script(settings: Mapping[str, Any]) -> int:
    """`python3 train.py`: the same, with the settings that stand in that file."""

    def run(args: Sequence[str]) -> int:
        base = RunConfig().with_flat(settings, "train.py")
        config = _given(args, "config")["config"]
        base = load_config(user_path(config), base) if config else base
        command = _parsed(ScriptCommand, "train.py", args, base)
        again = [sys.executable, os.path.abspath(sys.argv[0]), *args]
        return _train(_settings(command), command.beginning, again, "")

    return guarded(run, sys.argv[1:])


def generate(args: Sequence[str]) -> int:
    """Write text with a trained model."""
    command = tyro.cli(GenerateCommand, prog="tiny-gpt generate", args=args, config=FLAT)
    return _write(command, command.model)


def _write(command: GenerateScript, model: str) -> int:
    sample, default = command.sample, SampleConfig()
    if model and sample.checkpoint:
        raise UsageError(f"{model} and --checkpoint {sample.checkpoint}: give one of them")
    if command.manner.prompt_file and sample.prompt != default.prompt:
        raise UsageError("--prompt and --prompt-file: give one of them")
    if command.manner.interactive and sample.num_samples != default.num_samples:
        raise UsageError(f"--interactive writes one text after the other: leave out --num-samples {sample.num_samples}")
    from tiny_gpt.cli.generate import write_samples

    return write_samples(find_model(model or sample.checkpoint), sample, command.manner)


def data(args: Sequence[str]) -> int:
    """Look at your text before you train on it; `data list` shows the known texts."""
    default = DataCommand(RECIPES["auto"].data)
    command = tyro.cli(DataCommand, prog="tiny-gpt data", args=args, default=default, config=FLAT)
    from tiny_gpt.cli.data import describe_data, list_datasets

    if not command.sources:
        raise UsageError("name a text: tiny-gpt data my_text.txt; tiny-gpt data list shows the known ones")
    if command.sources == ("list",):
        return list_datasets()
    return describe_data(RunConfig(data=replace(command.data, data=command.sources)), command.json)


def evaluate(args: Sequence[str]) -> int:
    """Score a trained model on a text, in bits per byte and other units."""
    command = tyro.cli(EvalCommand, prog="tiny-gpt eval", args=args, config=FLAT)
    if not command.sources:
        raise UsageError("name a text to score the model on: tiny-gpt eval MODEL my_text.txt")
    from tiny_gpt.cli.evaluate import score

    return score(find_model(command.model), command.sources, command.eval, command.json)


def export(args: Sequence[str]) -> int:
    """Write a trained model for other tools: transformers, mlx-lm, llama.cpp, Ollama."""
    command = tyro.cli(ExportCommand, prog="tiny-gpt export", args=args, config=FLAT)
    from tiny_gpt.cli.export import export_model

    return export_model(command.model, command.to, command.out)


def import_(args: Sequence[str]) -> int:
    """Make a model file of a GPT-2 or Qwen3 folder in Hugging Face's form."""
    command = tyro.cli(ImportCommand, prog="tiny-gpt import", args=args, config=FLAT)
    from tiny_gpt.cli.export import import_model

    return import_model(command.folder, command.out)


def doctor(args: Sequence[str]) -> int:
    """Check that this machine computes right, before a night; says which device and settings are safe."""
    command = tyro.cli(DoctorCommand, prog="tiny-gpt doctor", args=args, config=FLAT)
    from tiny_gpt.cli.doctor import examine

    return examine(command.device, command.json)


def inference_script() -> int:
    """`python3 inference.py`."""

    def run(args: Sequence[str]) -> int:
        return _write(tyro.cli(GenerateScript, prog="inference.py", args=args, default=SCRIPT, config=FLAT), "")

    return guarded(run, sys.argv[1:])


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": plan,
    "train": train,
    "resume": resume,
    "generate": generate,
    "data": data,
    "eval": evaluate,
    "export": export,
    "import": import_,
    "doctor": doctor,
}


def _settings(command: RunConfig) -> RunConfig:
    return RunConfig(command.model, command.data, command.train, command.reliability)


def _me() -> str:
    """This program as it was typed, if it is not on PATH."""
    if shutil.which("tiny-gpt"):
        return "tiny-gpt"
    return f"{quoted(sys.orig_argv[0])} -m tiny_gpt" if Path(sys.argv[0]).name == "__main__.py" else sys.argv[0]


def _train(config: RunConfig, beginning: Beginning, again: list[str], me: str, is_more: bool = False) -> int:
    """Train in a process of its own under the watchdog's eyes, or in this one. `me` is "" for train.py.

    `is_more`: the time that was asked for comes on top of what the run has had.
    """
    settled = os.environ.pop(SETTLED, None)
    if settled is None:
        folder, is_resumed = settle(config, beginning)
        is_more = is_more or (is_resumed and config.train.is_timed and unfinished(folder) is None)
        ordered_at = time.time()
    else:  # by the parent; what it started again goes on
        name, is_resumed, me, ordered_at, is_more = json.loads(settled)
        folder, is_resumed = Path(name), is_resumed or bool(restart_reason())
    if config.reliability.watchdog and not is_watched():
        os.environ[SETTLED] = json.dumps([str(folder), is_resumed, me, ordered_at, is_more])
        sys.stdout.flush()
        try:
            return watch(again, again, lambda: newest_step(folder), error)
        finally:
            del os.environ[SETTLED]
    heartbeat()
    from tiny_gpt.cli.train import NextCommands, train_and_sample
    from tiny_gpt.training.budget import RunRequest

    start = config.train.start_from
    if start and not is_resumed:  # which has no need of it any more
        start = str(find_model(start))
    config = replace(config, train=replace(config.train, out_dir=str(folder), start_from=start))
    name = quoted(str(folder))
    out_dir = "" if folder == Path() else f" --out-dir {name}"
    return train_and_sample(
        config,
        is_resumed,
        RunRequest(ordered_at, is_more, is_restart=bool(restart_reason())),
        NextCommands(
            generate=f"{me} generate" if me else "python3 inference.py",
            train=f"{me} train my_text.txt --for 8h" if me else "python3 train.py --data my_text.txt",
            resume=f"{me} resume {name}" if me else f"python3 train.py --resume{out_dir}",
        ),
    )


def settle(config: RunConfig, beginning: Beginning) -> tuple[Path, bool]:
    """Which folder the run of `config` goes to, and whether it goes on with what is there; asks on a terminal.

    Raises UsageError where there is an unfinished run, no flag and nobody to ask.
    """
    folder = folder_for(config, is_new=beginning.new)
    found = unfinished(folder, config.train.total_steps if beginning.resume else 0)
    if beginning.resume:
        is_begun = newest_step(folder) >= 0
        if found is None and not (is_begun and config.train.is_timed):
            state = "is finished" if is_begun else "holds no checkpoint"
            raise UsageError(f"--resume: {folder} {state}; leave --resume out to begin a new run")
        return folder, True
    if found is None or beginning.new:
        return folder, False
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(f"{found}; give --resume to go on with it, or --new to begin a new one")
    while True:
        answer = input(f"{found}.\nGo on with it? [Y]es, [n]ew run: ").strip().lower()
        if answer in ("", "y", "yes"):
            return folder, True
        if answer in ("n", "new", "no"):
            return folder_for(config, is_new=True), False


def _budgets_given(args: Sequence[str]) -> list[str]:
    """Which of BUDGETS stand among the flags; raises UsageError for more than one."""
    found = _given(args, *BUDGETS)
    given = [name for name in BUDGETS if found[name] is not None]
    if len(given) > 1:
        raise UsageError(more_than_one_budget(given), code="several-budgets")
    if given and not found[given[0]].strip("0."):  # type: ignore[union-attr]
        raise UsageError(f"{flag(given[0])} {found[given[0]]}: must be greater than 0")
    return given


def _without_budget(train: TrainConfig, args: Sequence[str]) -> TrainConfig:
    """The defaults for `args`: a budget that they give takes the place of the one that was there."""
    return train.without_budget() if _budgets_given(args) else train


def _given(args: Sequence[str], *names: str) -> dict[str, str | None]:
    """The values of a few flags, before the others can be understood."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(flag(name), dest=name)
    spelled = [re.sub("^--[a-z_]+", lambda found: found[0].replace("_", "-"), arg) for arg in args]
    with contextlib.suppress(argparse.ArgumentError):  # the real parser will explain it
        return vars(parser.parse_known_args(spelled)[0])
    return dict.fromkeys(names)


def guarded(command: Callable[[Sequence[str]], int], args: Sequence[str]) -> int:
    """Run a command; every failure becomes a line or two on standard error and the right exit code."""
    debug = "--debug" in args
    make_safe(sys.stdout)
    let_waiting_threads_sleep()
    try:
        return command([arg for arg in args if arg != "--debug"])
    except SystemExit as leaving:  # tyro after --help or a usage error
        return leaving.code if isinstance(leaving.code, int) else UsageError.exit_code
    except KeyboardInterrupt:
        error("\nStopped. What was saved before is whole.")
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it on its way out
        return 0
    except Exception as failure:
        if debug:
            traceback.print_exc()
        told = foreseen(failure)
        error(f"error: {told}")
        return told.exit_code


def let_waiting_threads_sleep() -> None:
    """Have torch's CPU threads spin for microseconds when they wait for one another, then sleep.

    Call it before torch is first imported. Spinning on made a guide's step three times as slow as sleeping once
    another program was busy on one of two cores; sleeping at once made a small model's step half as slow again on an
    idle machine (docs/log/training-step.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def foreseen(failure: Exception) -> TinyGPTError:
    """The failure in words for a person: our own errors as they are, the machine's translated."""
    if isinstance(failure, TinyGPTError):
        return failure
    if isinstance(failure, MemoryError) or "out of memory" in str(failure) or "can't allocate memory" in str(failure):
        return OutOfResourcesError(
            "out of memory: reduce the batch size (--batch-size 32), the block (--block-size 64), or compute each "
            "batch in parts (--grad-accum-steps 2)"
        )
    if isinstance(failure, OSError) and failure.errno == errno.ENOSPC:
        return OutOfResourcesError("no space left on the disk; free some and start again")
    return TinyGPTError(f"{type(failure).__name__}: {failure}\nThis is a bug in tiny_gpt; --debug shows where.")
