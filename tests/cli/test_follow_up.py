"""What follows a training: messages, the user's command, and the trackers' last rows."""

import os
import shutil
import signal
import sys
import time
from dataclasses import replace

import pytest

from tests.trackers.support import WrittenRun
from tiny_gpt.cli import follow_up, trackers
from tiny_gpt.cli.follow_up import FollowUp
from tiny_gpt.config import ReportingConfig
from tiny_gpt.errors import DivergedError, UsageError
from tiny_gpt.host.signals import Stopped
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.run.status import read_status, write_status

posix_only = pytest.mark.skipif(os.name == "nt", reason="the commands are for a POSIX shell")


@pytest.fixture
def run(tmp_path):
    return WrittenRun(tmp_path / "my_run")


@pytest.fixture
def posted(monkeypatch):
    """Messages that would be posted."""
    messages = []
    monkeypatch.setattr(
        follow_up, "post_to_all", lambda addresses, message: messages.append((addresses, message)) or ["notified"]
    )
    return messages


@pytest.fixture
def ended(run):
    """`ended(settings, code)`: a training of `run` that ended with this exit code, or raised it; its exit code."""

    def accompany(settings, code=0, state="finished", has_begun=True, **changes):
        def train():
            if has_begun:
                run.evaluate(50)
                run.set_state(state, started=time.time())
                path = run.folder / "status.json"
                write_status(path, replace(read_status(path), **changes))
            if isinstance(code, BaseException):
                raise code
            return code

        return FollowUp(settings, FollowedFolder(run.folder), is_resumed=False, program="tiny-gpt").accompany(train)

    return accompany


URL = "https://hooks.slack.com/services/secret"
NOTIFY = ReportingConfig(notify=(URL,))


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder with open files")
def test_a_run_that_was_moved_meanwhile_is_found(run, posted, capfd):
    moved = run.folder.with_name("moved")

    def train():
        run.evaluate(50)
        run.set_state("finished", started=time.time())
        run.folder.rename(moved)
        return 0

    settings = replace(NOTIFY, then="echo $TINY_GPT_STATUS $TINY_GPT_RUN")
    place = FollowedFolder(run.folder)
    assert FollowUp(settings, place, is_resumed=False, program="tiny-gpt").accompany(train) == 0
    assert f"finished {moved}" in capfd.readouterr().out and "moved" in posted[0][1].title


def test_the_end_is_posted(ended, posted):
    assert ended(NOTIFY) == 0
    ((addresses, message),) = posted
    assert addresses == [URL] and message.title == "my_run: training finished" and not message.is_alarm
    assert message.text == "Best model: 1.700 bits per byte, step 200. Took 9 s."
    assert (
        message.facts.items() >= {"status": "finished", "exit_code": 0, "val_bits_per_byte": 1.7, "step": 200}.items()
    )
    assert not any("/" in str(value) for value in message.facts.values())


def test_a_stop_is_posted(ended, posted):
    assert ended(NOTIFY, 143, state="stopped") == 143
    assert posted[0][1].title == "my_run: training stopped"
    assert "tiny-gpt resume my_run" in posted[0][1].text


@pytest.mark.parametrize(
    ("code", "changes", "reason"),
    [
        (4, dict(state="failed", error="the loss\nbecame NaN", error_code="diverged"), "the loss became NaN"),
        (137, dict(state="training"), "The training process ended with exit code 137."),
    ],
)
def test_a_failure_is_posted_with_its_reason(ended, posted, code, changes, reason):
    assert ended(NOTIFY, code, **changes) == code
    message = posted[0][1]
    assert message.is_alarm and message.title == "my_run: training failed" and message.text.startswith(reason)


def test_a_failure_in_this_process_is_posted_and_raised(ended, posted):
    with pytest.raises(DivergedError):
        ended(NOTIFY, DivergedError("the loss became NaN", code="diverged"))
    assert posted[0][1].text.startswith("the loss became NaN") and posted[0][1].facts["exit_code"] == 4


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Stopped(signal.SIGTERM), 143)])
def test_a_signal_that_ends_the_training_in_this_process_is_posted_and_raised(ended, posted, stop, code):
    with pytest.raises(KeyboardInterrupt):
        ended(NOTIFY, stop)
    assert posted[0][1].facts["exit_code"] == code and posted[0][1].facts["status"] == "stopped"


def test_a_training_that_fails_before_its_users_eyes_is_not_reported(ended, posted, tmp_path, monkeypatch):
    """It does not turn the machine off because of a typing error; but after a long preparation it does."""
    settings = replace(NOTIFY, then=f"echo > {tmp_path / 'done'}")
    assert ended(settings, 3, has_begun=False) == 3
    assert not posted and not (tmp_path / "done").exists()
    monkeypatch.setattr(follow_up, "WATCHED_S", 0.0)
    assert ended(settings, 3, has_begun=False) == 3
    assert posted[0][1].is_alarm and (tmp_path / "done").exists()


@posix_only
def test_the_command_runs_once_and_knows_the_run(ended, run, capfd):
    settings = ReportingConfig(then='echo "$TINY_GPT_STATUS $TINY_GPT_VAL_BPB $TINY_GPT_STEP $TINY_GPT_RUN"; exit 3')
    assert ended(settings) == 0
    done = capfd.readouterr()
    assert done.out.splitlines()[0].startswith("Running: echo")
    assert done.out.splitlines()[1:] == [f"finished 1.7 200 {run.folder}"]
    assert "ended with exit code 3" in done.err


@posix_only
@pytest.mark.parametrize(("code", "runs"), [(4, True), (137, True), (130, False), (143, False)])
def test_the_command_runs_after_a_failure_but_not_after_a_stop(ended, capfd, code, runs):
    ended(ReportingConfig(then="echo $TINY_GPT_STATUS $TINY_GPT_EXIT_CODE"), code, state="training")
    assert (f"failed {code}" in capfd.readouterr().out) == runs


@posix_only
def test_the_command_gets_no_input_and_text_of_the_run_is_not_executed(ended, capfd, tmp_path):
    reason = f"$(touch {tmp_path}/hacked); `touch {tmp_path}/hacked`"
    settings = ReportingConfig(then='cat; echo "$TINY_GPT_REASON"')
    ended(settings, 4, state="failed", error=reason, error_code="x")
    assert reason in capfd.readouterr().out and not (tmp_path / "hacked").exists()


def test_addresses_may_come_from_the_environment(ended, posted, monkeypatch):
    monkeypatch.setenv("TINY_GPT_NOTIFY", "https://a.example.org https://b.example.org")
    ended(ReportingConfig())
    ended(NOTIFY)
    assert [addresses for addresses, _ in posted] == [["https://a.example.org", "https://b.example.org"], [URL]]


def test_an_impossible_address_is_refused_before_the_training(ended):
    with pytest.raises(UsageError) as error:
        ended(ReportingConfig(notify=("htps://example.org/secret",)))
    assert error.value.code == "notify-address-unusable" and "secret" not in str(error.value)


# --- trackers ---


FAKE = """
import os, sys, time
from pathlib import Path
run, name = sys.argv[1:]
Path(run, "starts").open("a").write(name + "\\n")
{program}
"""


@pytest.fixture
def fake_tracker(monkeypatch, run):
    """`fake_tracker(program)`: what runs instead of `tiny-gpt track`."""
    popen, started = trackers.subprocess.Popen, []

    def use(program):
        def start(command, **options):
            run_dir, name = command[-3], command[-1]
            started.append(popen([sys.executable, "-c", FAKE.format(program=program), run_dir, name], **options))
            return started[-1]

        monkeypatch.setattr(trackers, "is_installed", lambda name: True)
        monkeypatch.setattr(trackers.subprocess, "Popen", start)
        return lambda: (run.folder / "starts").read_text().split()

    yield use
    for process in started:
        process.kill()
        process.wait()


def test_trackers_hear_how_the_training_ended(ended, run, fake_tracker):
    starts = fake_tracker("Path(run, name).write_text(sys.stdin.read())")
    ended(ReportingConfig(track=("tensorboard", "wandb")), 4, state="failed")
    assert sorted(starts()) == ["tensorboard", "wandb"]
    assert (run.folder / "tensorboard").read_text() == (run.folder / "wandb").read_text() == "failed\n"


def test_a_tracker_that_crashed_gets_a_second_chance_at_the_end(ended, fake_tracker, capfd):
    starts = fake_tracker("sys.exit(1)")
    assert ended(ReportingConfig(track=("wandb",), then="sleep 0"), 0) == 0
    assert starts()[:1] == ["wandb"]
    assert "wandb is incomplete" in capfd.readouterr().err


def test_a_tracker_that_hangs_delays_the_end_only_a_while(ended, fake_tracker, monkeypatch, capfd):
    fake_tracker("time.sleep(60)")
    monkeypatch.setattr(trackers, "TRACKER_PATIENCE_S", 0.2)
    start = time.monotonic()
    assert ended(ReportingConfig(track=("wandb",))) == 0
    assert time.monotonic() - start < 30
    assert "still being sent in the background" in capfd.readouterr().out


def test_a_missing_tracker_is_named_and_the_training_runs(ended, monkeypatch, capfd):
    monkeypatch.setattr(trackers, "is_installed", lambda name: False)
    assert ended(ReportingConfig(track=("mlflow",))) == 0
    printed = capfd.readouterr().err
    assert "-m pip install mlflow" in printed and "tiny-gpt track" in printed


def test_a_resumed_run_stays_in_its_trackers(run, fake_tracker):
    starts = fake_tracker("")
    (run.folder / "trackers").mkdir()
    (run.folder / "trackers" / "wandb.json").write_text('{"id": "abc"}')
    for is_resumed in (False, True):
        FollowUp(ReportingConfig(), FollowedFolder(run.folder), is_resumed, "tiny-gpt").accompany(lambda: 0)
    FollowUp(ReportingConfig(track=("mlflow",)), FollowedFolder(run.folder), True, "tiny-gpt").accompany(lambda: 0)
    assert starts() == ["wandb", "mlflow"]


def test_unknown_run_and_missing_package_are_explained(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "is_installed", lambda name: False)
    command("tiny-gpt", "track", "--to", "wandb").assert_error(2, "tracker-not-installed", "pip install wandb")
    monkeypatch.setattr(trackers, "is_installed", lambda name: True)
    command("tiny-gpt", "track", "--to", "wandb").assert_error(3, "no-run-to-show")
    command("tiny-gpt", "track", "nosuch", "--to", "wandb").assert_error(3, "run-not-found", "nosuch")


def test_a_training_is_tracked_to_its_end(train, tmp_path, monkeypatch):
    """The real thing: a training, and TensorBoard in its own process."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.setattr(trackers, "TRACKER_PATIENCE_S", 300.0)
    done = train(tmp_path / "my_run", track="tensorboard")
    assert done.code == 0 and "tensorboard --logdir" in done.out, done
    sent = (tmp_path / "my_run" / "trackers" / "tensorboard.sent").read_text().splitlines()
    assert [line.rsplit(" ", 1)[0] for line in sent if line.startswith("row")] == ["row 3", "row 6", "row 9", "row 12"]
    assert any(line.startswith("sample") for line in sent)
    shutil.rmtree(tmp_path / "my_run")
