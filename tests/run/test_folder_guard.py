"""A run whose folder is moved, deleted or replaced while it trains: nothing lost, and never two writers."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.run.support import finish, of, out_dir, warnings_in
from tiny_gpt.config import BEST_FILE, CONFIG_FILE, FINAL_FILE
from tiny_gpt.errors import BadInputError, RestartRequestedError, UsageError
from tiny_gpt.run import folder_guard
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.events import Finished, StepDone
from tiny_gpt.run.output_folder import LOCK_FILE, run_lock
from tiny_gpt.run.run import run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder that is in use")
STEP = 13


def trained(config, act, step=STEP):
    """All events; after `step`, `act` is called with the run's folder."""
    events = []
    for event in run(config):
        events.append(event)
        if isinstance(event, StepDone) and event.step == step:
            act(out_dir(config))
    return events


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_moved_folder_is_followed(config, monkeypatch, is_watched, tmp_path):
    monkeypatch.setattr(folder_guard, "is_watched", lambda: is_watched)
    place = tmp_path / "moved"
    with pytest.raises(RestartRequestedError if is_watched else BadInputError) as error:
        trained(config, lambda folder: folder.rename(place))
    assert error.value.code == "run-folder-moved" and str(place) in str(error.value)
    assert not out_dir(config).exists(), "it is not made anew"
    assert CheckpointStore(place).steps()[0] >= STEP, "no step is lost"
    os.rename(place, out_dir(config))
    resumed = finish(config, resume=True)
    shutil.rmtree(out_dir(config))
    assert resumed.rows == finish(config).rows


def test_a_moved_run_cannot_be_resumed_while_it_trains(config, monkeypatch, tmp_path):
    """Its lock moves with it; the other process is refused before it changes anything."""
    place = tmp_path / "moved"
    refused = []

    def move(folder):
        folder.rename(place)
        with pytest.raises(UsageError) as error, run_lock(place):
            pass
        refused.append(error.value.code)

    with pytest.raises(BadInputError):
        trained(config, move)
    assert refused == ["run-folder-in-use"]


def test_another_run_in_the_old_place_is_left_alone(config, tmp_path):
    def move_and_make(folder):
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / BEST_FILE).write_text("another run's")

    with pytest.raises(BadInputError):
        trained(config, move_and_make)
    assert [path.name for path in out_dir(config).iterdir()] == [BEST_FILE]
    assert (out_dir(config) / BEST_FILE).read_text() == "another run's"


def test_a_replaced_folder_is_left_alone(config, tmp_path):
    def replace(folder):
        shutil.rmtree(folder)
        (tmp_path / "taken").mkdir()
        folder.mkdir()

    with pytest.raises(BadInputError) as error:
        trained(config, replace)
    assert error.value.code == "run-folder-replaced" and not list(out_dir(config).iterdir())


@pytest.mark.parametrize("step", [1, STEP, 29])
def test_a_deleted_folder_is_made_and_locked_again(config, step):
    locked = []

    def check(event):
        folder = out_dir(config)
        if isinstance(event, StepDone) and event.step == step:
            shutil.rmtree(folder)
        if isinstance(event, StepDone) and event.step == step + 1:
            assert (folder / CONFIG_FILE).exists() and (folder / LOCK_FILE).exists()
            with pytest.raises(UsageError) as error, run_lock(folder):
                pass
            locked.append(error.value.code)

    events = []
    for event in run(config):
        events.append(event)
        check(event)
    assert locked == ["run-folder-in-use"] and isinstance(events[-1], Finished)
    assert any("made again" in line for line in warnings_in(events))
    assert (out_dir(config) / FINAL_FILE).exists() and CheckpointStore(out_dir(config)).newest()[0].step == 30


def test_a_deleted_folder_that_cannot_be_made_again_is_told_once(config, tmp_path):
    """A file has taken its name, and goes away again."""

    def block(folder):
        shutil.rmtree(folder)
        blocked = folder.parent / "blocked"
        blocked.write_text("")
        folder.symlink_to(blocked / "nowhere")

    events = []
    for event in run(config):
        events.append(event)
        if isinstance(event, StepDone) and event.step == STEP:
            block(out_dir(config))
        if isinstance(event, StepDone) and event.step == STEP + 9:
            out_dir(config).unlink()
    lines = warnings_in(events)
    assert sum("cannot be made again" in line for line in lines) == 1
    assert sum("it is made again" in line for line in lines) == 1
    assert isinstance(events[-1], Finished) and (out_dir(config) / FINAL_FILE).exists()


def test_a_disk_that_was_plugged_in_again_is_used(config, tmp_path):
    """The same files under another number."""

    def plug_in_again(folder):
        shutil.copytree(folder, tmp_path / "copy")
        shutil.rmtree(folder)
        (tmp_path / "copy").rename(folder)

    events = trained(config, plug_in_again)
    assert of(Finished, events) and any("plugged in again" in line for line in warnings_in(events))
    assert CheckpointStore(out_dir(config)).steps()[0] == 30


HOOK = """
# Moves the run's folder before step 13 of the first training process.
import os, sys, threading, time

def hook():
    while not hasattr(sys.modules.get("tiny_gpt.run.trainer"), "Trainer"):
        time.sleep(0.001)
    trainer = sys.modules["tiny_gpt.run.trainer"].Trainer
    train_one_step = trainer._train_one_step

    def moving(self, point):
        if self.state.step == 12 and os.path.exists({old!r}):
            time.sleep(5)  # until the watchdog has seen the folder in its first place, however busy the machine is
            os.rename({old!r}, {new!r})
        return train_one_step(self, point)

    trainer._train_one_step = moving

if "TINY_GPT_HEARTBEAT" in os.environ:
    threading.Thread(target=hook, daemon=True).start()
"""


@pytest.mark.slow
def test_the_watchdog_sends_the_next_process_after_the_folder(text, tmp_path):
    """A whole training by its command."""
    old, new = tmp_path / "runs" / "text", tmp_path / "kept"
    (tmp_path / "sitecustomize.py").write_text(HOOK.format(old=str(old), new=str(new)))
    args = f"train {text.name} --recipe overnight --epochs 3 --iters-per-epoch 10 --no-keep-awake "
    args += "--n-layer 1 --n-head 2 --d-model 16 --block-size 8 --batch-size 8 --backend eager --precision fp32"
    ended = subprocess.run(
        [sys.executable, "-m", "tiny_gpt", *args.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert not old.exists() and CheckpointStore(new).steps()[0] == 30
    assert "asked for a restart" in ended.stderr and str(new) in ended.stdout
