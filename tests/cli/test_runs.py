"""Runs as commands: where they go, how they are found, stopped, resumed, extended and restarted."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.run.support import (
    CPU,
)
from tiny_gpt.cli import launch, session
from tiny_gpt.cli import main as cli
from tiny_gpt.cli.train import train_script
from tiny_gpt.config import (
    BEST_FILE,
    FINAL_FILE,
)
from tiny_gpt.host import watchdog
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import clock
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.events import (
    StepDone,
)
from tiny_gpt.run.folders import find_model, unfinished
from tiny_gpt.run.output_folder import run_lock
from tiny_gpt.ui import consumers


@pytest.fixture(autouse=True)
def save_at_every_step(monkeypatch):
    monkeypatch.setattr(clock, "MAX_OVERHEAD", 1e9)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on a mat and said hello to every dog in town.\n" * 60)
    return path


@pytest.fixture
def tiny_gpt(tmp_path, monkeypatch, capfd, text):
    """`tiny_gpt(words...)` in this process, in a folder of its own: (exit code, what it printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "is_watched", lambda: True)

    def call(*words):
        code = cli.main([str(word) for word in words])
        done = capfd.readouterr()
        assert "Traceback" not in done.err
        return code, done.out + done.err

    return call


def train_words(**changes):
    settings = dict(
        n_layer=1, n_head=2, d_model=16, d_ff=32, block_size=8, epochs=2, iters_per_epoch=6, eval_interval=3
    )
    settings |= dict(batch_size=4, device="cpu", precision="fp32", backend="eager", checkpoint_minutes=1e-9) | changes
    words = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return ["train", "text.txt", "--recipe", "overnight", "--no-keep-awake", *words]


@pytest.fixture
def stopped(tiny_gpt, monkeypatch):
    """A run in runs/text that was asked to stop in its fourth step."""
    with pytest.MonkeyPatch.context() as patch:
        deliver = consumers.deliver

        def deliver_and_stop(event, consumers):
            deliver(event, consumers)
            if isinstance(event, StepDone) and event.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(consumers, "deliver", deliver_and_stop)
        code, shown = tiny_gpt(*train_words())
    assert code == 143 and "Resume training:" in shown and "resume runs/text" in shown
    assert re.search(r"Or finish it soon:\n  .*resume runs/text --for 1m --cooldown 1\n", shown)
    return Path("runs/text")


def test_an_unfinished_run_needs_resume_or_new(tiny_gpt, stopped):
    code, shown = tiny_gpt(*train_words())
    assert code == 2
    assert "runs/text holds an unfinished run: epoch 1 of 2, step 4 of 12; give --resume to resume it" in shown
    code, shown = tiny_gpt(*train_words(), "--resume")
    assert code == 0 and "after step 4 of 12" in shown
    assert load_model(stopped / FINAL_FILE, CPU).progress.step == 12
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 9, 12], "the evaluation of the stop was none of the run's own"


def test_new_starts_beside_an_unfinished_run(tiny_gpt, stopped):
    assert tiny_gpt(*train_words(), "--new")[0] == 0
    assert tiny_gpt(*train_words(), "--new")[0] == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["text", "text-2", "text-3"]
    assert unfinished(stopped) and not unfinished(Path("runs/text-2"))


@pytest.mark.parametrize("name", [[], ["text"], ["runs/text"]])
def test_resume_finds_the_run(tiny_gpt, stopped, name):
    code, shown = tiny_gpt("resume", *name)
    assert code == 0 and "after step 4 of 12" in shown and not unfinished(stopped)
    abandoned = stopped / ".report.html.123.part"  # by a process that was killed
    abandoned.touch()
    code, shown = tiny_gpt("resume", "text")
    assert code == 2 and "runs/text is finished; to train it further, give more time" in shown
    assert not abandoned.exists()
    code, shown = tiny_gpt("resume", "text", "--epochs", 3)
    assert code == 0 and load_model(stopped / FINAL_FILE, CPU).progress.step == 18


def test_a_run_that_is_being_trained_is_not_called_unfinished(tiny_gpt, stopped):
    with run_lock(stopped):
        for words in (["resume", "text"], ["resume", "runs/text"], train_words(), [*train_words(), "--resume"]):
            code, shown = tiny_gpt(*words)
            assert code == 2 and "is being trained right now" in shown and "unfinished" not in shown, words
        code, shown = tiny_gpt("resume")
        assert code == 3 and "runs/text is being trained right now" in shown
        code, shown = tiny_gpt("resume", "nosuch")
        assert code == 3 and "unfinished" not in shown
        code, shown = tiny_gpt(*train_words(), "--new")
        assert code == 0 and Path("runs/text-2/tiny_gpt_final.pt").exists()
    assert tiny_gpt("resume", "text")[0] == 0


def test_a_stopped_run_can_cool_down_and_be_extended(tiny_gpt, stopped):
    code, shown = tiny_gpt("resume", "text", "--for", "2s", "--cooldown", "1")
    assert code == 0 and "the budget was --epochs 2, is now --for 2s" in shown
    assert "budget     --for 2s: ended" in shown and not unfinished(stopped)
    n_steps = load_model(stopped / FINAL_FILE, CPU).progress.step
    assert re.search(r"Train it further, overnight:\n  .*resume runs/text --for 8h", shown)
    code, shown = tiny_gpt("resume", "text")
    assert code == 2 and "is finished" in shown and "--for 1h" in shown
    code, shown = tiny_gpt("resume", "text", "--for", "1s")
    assert code == 0 and "--cooldown was 1.0, is now 0.6" in shown
    assert load_model(stopped / FINAL_FILE, CPU).progress.step > n_steps > 4
    code, shown = tiny_gpt("resume", "text", "--for", "1s")
    assert code == 0 and re.search(r"continuing from step [\d,]+, before the learning rate decayed", shown)


def test_finish_soon_takes_a_tenth_of_the_time(tiny_gpt, stopped, monkeypatch):
    commands_to_type = session.NextCommands("", "", "tiny-gpt resume runs/text")
    assert commands_to_type.finish_soon(5 * 3600) == "tiny-gpt resume runs/text --for 30m --cooldown 1"
    assert commands_to_type.finish_soon(20) == "tiny-gpt resume runs/text --for 1m --cooldown 1"


def test_an_unfinished_timed_run_shows_its_share(tiny_gpt, monkeypatch):
    def stop_at_once(event, consumers):
        if isinstance(event, StepDone) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(consumers, "deliver", stop_at_once)
    words = train_words()
    at = words.index("--epochs")
    words = words[:at] + words[at + 2 :]
    code, shown = tiny_gpt(*words, "--for", "1h")
    assert code == 130 and "--for 1m --cooldown 1" in shown
    code, shown = tiny_gpt(*words, "--for", "1h")
    assert code == 2 and re.search(r"holds an unfinished run: \d+% of its time, step \d; give --resume", shown)


@pytest.mark.parametrize(("words", "named"), [([], ["runs/text"]), (["text"], [])])
def test_a_restart_resumes_the_same_run(tiny_gpt, stopped, monkeypatch, words, named):
    monkeypatch.setattr(launch, "is_watched", lambda: False)
    started = []
    monkeypatch.setattr(watchdog, "watch", lambda first, again, *_, **__: started.append((first, again)) or 0)
    assert tiny_gpt("resume", *words, "--epochs", 3)[0] == 0
    expected = [sys.executable, "-m", "tiny_gpt", "resume", *named, *words, "--epochs", "3"]
    assert started == [(expected, expected)]


def test_resume_names_what_is_missing(tiny_gpt, stopped):
    code, shown = tiny_gpt("resume", "nosuch")
    assert code == 3 and "no run nosuch" in shown and "unfinished: runs/text" in shown
    Path("empty").mkdir()
    code, shown = tiny_gpt("resume", "empty")
    assert code == 3 and "empty holds no intact checkpoint to resume from" in shown
    code, shown = tiny_gpt("resume", "text", "--n-layer", 2)
    assert code == 3 and "--n-layer was 1, is now 2" in shown
    code, shown = tiny_gpt(*train_words(), "--resume", "--new")
    assert code == 2 and "--resume and --new: give only one of them" in shown
    code, shown = tiny_gpt(*train_words(), "--out-dir", "empty", "--resume")
    assert code == 2 and "empty has no checkpoint; leave out --resume" in shown


@pytest.mark.parametrize(("answers", "resumes"), [([""], True), (["what?", "Y"], True), (["n"], False)])
def test_a_terminal_is_asked(stopped, tiny_gpt, monkeypatch, answers, resumes):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answers.pop(0))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert tiny_gpt(*train_words())[0] == 0
    assert "runs/text holds an unfinished run" in asked[0] and not answers
    assert bool(unfinished(stopped)) is not resumes and Path("runs/text-2").exists() is not resumes


def test_train_py_resumes_in_its_own_folder(tiny_gpt, stopped, monkeypatch):
    stopped.rename("here")
    monkeypatch.chdir("here")
    settings = {"out_dir": ".", "data": [str(Path("../text.txt"))]}
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", *train_words()[4:]])
    assert train_script(settings) == 0
    assert load_model(Path(FINAL_FILE), CPU).progress.step == 12


def test_generate_uses_the_newest_run(tiny_gpt, stopped):
    assert find_model("") == stopped / BEST_FILE
    code, shown = tiny_gpt("generate", "--num-samples", 1, "--max-tokens", 5, "--seed", 1)
    assert code == 0 and shown.startswith("The")


def test_nan_logits_are_an_error(tiny_gpt, stopped):
    content = torch.load(stopped / BEST_FILE, weights_only=True)
    content["weights"]["head.weight"].fill_(math.nan)
    torch.save(content, stopped / BEST_FILE)
    code, shown = tiny_gpt("generate", "--num-samples", 1)
    assert code == 3 and "head.weight are NaN or infinite" in shown


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_training_process_is_restarted(tmp_path, text):
    words = [*train_words(epochs=400, iters_per_epoch=10, eval_interval=10), "--out-dir", "run"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "tiny_gpt", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        folder = tmp_path / "run"
        for n_saved in (1, 2):
            deadline = time.monotonic() + 60
            before = max(CheckpointStore(folder).steps(), default=0)
            while max(CheckpointStore(folder).steps(), default=0) < before + 20:
                assert time.monotonic() < deadline and parent.poll() is None, n_saved
                time.sleep(0.05)
            if n_saved == 1:
                psutil.Process(parent.pid).children()[0].kill()
        parent.terminate()
        shown = parent.communicate(timeout=60)[0].decode()
    finally:
        parent.kill()
    assert parent.returncode == 143, shown
    assert re.search(r"The training process was killed by signal 9 .* restarting it from the last checkpoint", shown)
    assert "restarted: the training process was killed by signal 9" in (folder / "train.log").read_text()
    assert unfinished(folder)
