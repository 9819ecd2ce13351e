"""From settings to a training process: which folder, resumed or new, and what a watchdog hands to its child."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tiny_gpt.cli import launch, session
from tiny_gpt.cli.launch import LAUNCH_VARIABLE, Launch, ResumeMode, launch_training, program_name, resolve_run_dir
from tiny_gpt.cli.session import NextCommands
from tiny_gpt.config import ReliabilityConfig, ReportingConfig, RunConfig, TrainConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.host import watchdog
from tiny_gpt.run.folders import Unfinished
from tiny_gpt.run.held_folder import FollowedFolder

LAUNCH = Launch("runs/text", is_resumed=False, extends=True, requested_at=1234.5, elapsed=67.8, program="tiny-gpt")


@pytest.fixture
def trained(monkeypatch):
    """The arguments of the trainings that would run in this process."""
    calls = []
    monkeypatch.setattr(session, "train_and_sample", lambda *args: calls.append(args) or 0)
    return calls


@pytest.fixture
def config(tmp_path):
    return RunConfig(train=TrainConfig(out_dir=str(tmp_path / "run")))


def test_launch_survives_the_way_to_the_child():
    assert Launch.from_json(LAUNCH.to_json()) == LAUNCH


def test_watchdog_gets_the_command_and_the_child_the_decision(config, monkeypatch):
    monkeypatch.setattr(launch, "is_watched", lambda: False)
    seen = []

    def watch(first, again, progress, tell, limits, is_group):
        seen.append((first, again, progress(), Launch.from_json(launch.os.environ[LAUNCH_VARIABLE])))
        return 7

    monkeypatch.setattr(watchdog, "watch", watch)
    assert launch_training(config, ResumeMode(), ["train", "text.txt"], "tiny-gpt") == 7
    ((first, again, newest_step, decided),) = seen
    assert first == again == ["train", "text.txt"] and newest_step == -1
    expected = replace(LAUNCH, run_dir=config.train.out_dir, extends=False, requested_at=0.0, elapsed=0.0)
    assert replace(decided, requested_at=0.0, elapsed=0.0) == expected
    assert LAUNCH_VARIABLE not in launch.os.environ


@pytest.mark.parametrize("reason", ["", "the training process was killed"])
def test_child_trains_as_decided_and_resumes_after_a_restart(config, trained, monkeypatch, reason):
    monkeypatch.setenv(LAUNCH_VARIABLE, LAUNCH.to_json())
    monkeypatch.setattr(launch, "is_watched", lambda: True)
    monkeypatch.setattr(launch, "restart_reason", lambda: reason)
    assert launch_training(config, ResumeMode(), [], "ignored") == 0
    ((config, is_resumed, request, commands),) = trained
    assert (config.train.out_dir, is_resumed) == ("runs/text", bool(reason))
    assert (request.at, request.extends, request.is_restart) == (1234.5, True, bool(reason))
    assert commands.generate == "tiny-gpt generate"


def test_without_watchdog_it_trains_in_this_process(config, trained, monkeypatch):
    monkeypatch.setattr(launch, "is_watched", lambda: False)
    config = replace(config, reliability=ReliabilityConfig(watchdog=False))
    assert launch_training(config, ResumeMode(), [], "") == 0 and len(trained) == 1


def test_resume_without_a_checkpoint_is_an_error(config):
    with pytest.raises(UsageError, match=config.train.out_dir) as error:
        resolve_run_dir(config, ResumeMode(resume=True))
    assert error.value.code == "not-resumable" and "--resume" in str(error.value)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_unfinished_run_needs_an_answer(config, monkeypatch, is_terminal):
    """Ctrl+D at the question is none."""

    def end_of_input(question):
        raise EOFError

    found = Unfinished(Path(config.train.out_dir), step=1, total_steps=2, iters_per_epoch=1)
    monkeypatch.setattr(launch, "unfinished", lambda *_: found)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("builtins.input", end_of_input)
    with pytest.raises(UsageError) as error:
        resolve_run_dir(config, ResumeMode())
    assert error.value.code == "run-unfinished"


def test_resume_and_new_exclude_each_other():
    with pytest.raises(UsageError, match="--resume and --new") as error:
        ResumeMode(resume=True, new=True)
    assert error.value.code == "resume-and-new"


@pytest.mark.parametrize(
    ("program", "run_dir", "resume"),
    [
        ("tiny-gpt", "runs/my text", "tiny-gpt resume 'runs/my text'"),
        ("", ".", "python3 train.py --resume"),
        ("", "out", "python3 train.py --resume --out-dir out"),
    ],
)
def test_next_commands_are_spelled_as_the_user_typed_them(program, run_dir, resume):
    assert NextCommands.of(program, run_dir).resume == resume


@pytest.mark.parametrize(
    ("on_path", "argv0", "name"),
    [
        ("/bin/tiny-gpt", "x", "tiny-gpt"),
        (None, "/a/__main__.py", "py -m tiny_gpt"),
        (None, "bin/tiny-gpt", "bin/tiny-gpt"),
    ],
)
def test_program_name_can_be_typed_again(monkeypatch, on_path, argv0, name):
    monkeypatch.setattr(launch.shutil, "which", lambda _: on_path)
    monkeypatch.setattr(sys, "argv", [argv0])
    monkeypatch.setattr(sys, "orig_argv", ["py", "-m", "tiny_gpt"])
    assert program_name() == name


def test_folder_of_a_new_run_is_named_after_the_text(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_run_dir(RunConfig().with_flat({"data": "my book.txt"}, "test"), ResumeMode()) == (
        Path("runs/my-book"),
        False,
    )


def test_a_restarted_resume_follows_the_folder_and_not_its_name(monkeypatch, tmp_path):
    """The watchdog knows where the run is; the name that the user gave may lead nowhere by now."""
    monkeypatch.delenv(launch.LAUNCH_VARIABLE, raising=False)
    assert launch.launched_folder() is None
    (tmp_path / "run").mkdir()
    started = replace(LAUNCH, run_dir=str(tmp_path / "run"))
    monkeypatch.setenv(launch.LAUNCH_VARIABLE, started.to_json())
    progress = launch._Progress(started, FollowedFolder(tmp_path / "run"))
    assert progress.newest_step() == -1
    (tmp_path / "run").rename(tmp_path / "kept")
    (tmp_path / "kept" / "checkpoints" / "step-00000007").mkdir(parents=True)
    assert progress.newest_step() == 7
    assert launch.launched_folder() == tmp_path / "kept"


def test_reports_are_made_once_by_the_process_that_the_user_started(config, trained, monkeypatch):
    """Not by the child that the watchdog restarts."""
    made = []
    monkeypatch.setattr(launch.FollowUp, "accompany", lambda self, train: made.append(self) or train())
    reporting = ReportingConfig(notify=("https://example.org",))
    monkeypatch.setattr(launch, "is_watched", lambda: False)

    def watch(first, again, progress, tell, limits, is_group):
        monkeypatch.setattr(launch, "is_watched", lambda: True)
        handed_over = launch.os.environ[LAUNCH_VARIABLE]
        for _ in range(2):
            launch_training(config, ResumeMode(), first, "tiny-gpt", reporting=reporting)
            launch.os.environ[LAUNCH_VARIABLE] = handed_over
        return 0

    monkeypatch.setattr(watchdog, "watch", watch)
    assert launch_training(config, ResumeMode(), ["train"], "tiny-gpt", reporting=reporting) == 0
    assert len(made) == 1 and len(trained) == 2
