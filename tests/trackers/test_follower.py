"""A tracker gets everything that a run's folder holds, once, whatever happens to either."""

import threading

import pytest

from tests.trackers.support import SAMPLE_TEXT, MemoryTracker, WrittenRun
from tiny_gpt.errors import UsageError
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.trackers import follower as follower_module
from tiny_gpt.trackers.follower import Follower, has_begun, sole_sender


@pytest.fixture
def run(tmp_path):
    return WrittenRun(tmp_path / "my_run")


@pytest.fixture
def opened():
    """All trackers that have been opened, the newest last."""
    return []


@pytest.fixture
def follow(run, opened, monkeypatch):
    """`follow(*failures)`: a new follower of the run, whose tracker fails so."""
    monkeypatch.setattr(follower_module, "REOPEN_S", (0.01,))
    monkeypatch.setattr(follower_module, "LAST_RETRIES_S", (0.01, 0.01))
    monkeypatch.setattr(follower_module, "LOOK_S", 0.01)
    reports = []

    def start(*failures):
        failures = list(failures)

        def open_run(name, tracked):
            opened.append(MemoryTracker(tracked, failures))
            return opened[-1]

        follower = Follower(FollowedFolder(run.folder), "wandb", reports.append, open_run)
        follower.reports = reports
        return follower

    return start


def steps(tracker):
    return [entry[0] if isinstance(entry, tuple) else entry for entry in tracker.log]


def test_rows_and_samples_are_sent_once_in_the_order_of_steps(run, follow, opened):
    run.evaluate(50, 100)
    run.sample(50)
    follower = follow()
    follower.send()
    assert opened[0].log == [(50, 1050.0, 8.5), (50, 1050.0, SAMPLE_TEXT), (100, 1100.0, 8.0)]
    follower.send()
    run.evaluate(150)
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 200, "val_loss": 7.0')  # it is being written
        file.flush()
        follower.send()
        file.write("}\n")
    follower.send()
    assert steps(opened[0])[3:] == [150, 200] and len(opened) == 1


def test_the_tracker_knows_the_run(run, follow, opened):
    run.evaluate(50)
    follow().send()
    tracked = opened[0].run
    assert tracked.name == "my_run" and not tracked.is_resumed
    assert tracked.config.items() >= {"n_layer": 3, "data": ["my text.txt"], "n_parameters": 3_222_784}.items()


def test_a_new_process_continues_the_same_run(run, follow, opened):
    run.evaluate(50)
    follow().send()
    run.evaluate(100)
    follow().send()
    first, second = opened
    assert second.run.id == first.run.id and second.run.is_resumed
    assert steps(second) == [100]


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("has_gone_on", [False, True])
def test_a_rollback_voids_the_later_rows(run, follow, opened, is_restarted, has_gone_on):
    run.evaluate(50, 100, 150)
    run.sample(150)
    follower = follow()
    follower.send()
    n_before = len(opened[0].log)
    run.rewind(1)
    if has_gone_on:
        run.evaluate(100, val_loss=5.0)
    follower = follow() if is_restarted else follower
    follower.send()
    log = opened[-1].log if is_restarted else opened[-1].log[n_before:]
    assert log[0] == "void from 100"
    assert log[1:2] == ([(100, 1100.0, 5.0)] if has_gone_on else [])


def test_a_failing_tracker_is_opened_again_and_gets_what_is_missing(run, follow, opened):
    run.evaluate(50, 100)
    over = threading.Event()
    follower = follow(OSError("no\nnetwork"), ValueError("no"))
    thread = threading.Thread(target=follower.follow, args=(over,))
    thread.start()
    while follower.n_sent < 2:
        over.wait(0.01)
    run.evaluate(150)
    run.set_state("finished")
    over.set()
    thread.join()
    assert follower.reports == ["OSError: no", "ValueError: no"] and len(opened) == 3
    best = {"step": 200.0, "val_loss": 1.2, "val_bits_per_byte": 1.7}
    assert opened[2].log[-1] == ("finished", best) and steps(opened[2])[:-1] == [50, 100, 150]


def test_a_tracker_that_fails_to_the_end_is_given_up(run, follow):
    run.evaluate(50)
    over = threading.Event()
    over.set()
    follower = follow(*[OSError("no network")] * 9)
    assert not follower.follow(over) and len(follower.reports) == 3


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"[1]\n{}\nnull\n", b'{"step": "x"}\n', b"[" * 99_999 + b"\n"])
def test_broken_files_are_no_rows(run, follow, opened, content):
    run.evaluate(50)
    for name in ("metrics.jsonl", "samples/index.jsonl", "config.json", "trackers/wandb.json", "trackers/wandb.sent"):
        (run.folder / name).parent.mkdir(exist_ok=True)
        with open(run.folder / name, "ab") as file:
            file.write(content)
    follow().send()
    assert steps(opened[0])[-1] == 50


def test_a_void_sample_is_not_sent_when_its_step_comes_again(run, follow, opened):
    run.evaluate(50, 100)
    run.sample(100)
    run.rewind(1)
    run.evaluate(100, time=2000.0)
    follow().send()
    assert steps(opened[0]) == [50, 100]


def test_a_sample_outside_the_folder_is_not_sent(run, follow, opened, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    run.evaluate(50)
    run.sample(50)
    (run.folder / "samples" / "step-00000050.txt").unlink()
    (run.folder / "samples" / "step-00000050.txt").symlink_to(tmp_path / "secret.txt")
    follow().send()
    assert steps(opened[0]) == [50]


def test_one_process_sends(run):
    with sole_sender(run.folder, "wandb"), sole_sender(run.folder, "mlflow"):
        with pytest.raises(UsageError) as error, sole_sender(run.folder, "wandb"):
            pass
        assert error.value.code == "tracker-in-use"


def test_a_run_that_is_moved_is_followed(run, follow, opened, tmp_path):
    run.evaluate(50)
    follower = follow()
    follower.send()
    run.folder = run.folder.rename(tmp_path / "elsewhere")
    run.evaluate(100)
    follower.send()
    follower.finish("finished")
    assert [tracker.run.folder for tracker in opened] == [
        tmp_path / "my_run/trackers/wandb",
        tmp_path / "elsewhere/trackers/wandb",
    ]
    assert opened[0].run.id == opened[1].run.id and opened[1].run.is_resumed
    assert [steps(tracker) for tracker in opened] == [[50, "training"], [100, "finished"]]
    assert not (tmp_path / "my_run").exists() and str(tmp_path / "elsewhere") in follower.reports[-1]


def test_a_training_has_begun_when_its_status_says_so(run, tmp_path):
    run.set_state("training", started=100.0)
    assert has_begun(run.folder, 99.0) and not has_begun(run.folder, 101.0)
    assert not has_begun(tmp_path / "nosuch", 1.0)
