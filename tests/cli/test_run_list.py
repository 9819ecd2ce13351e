"""`tiny-gpt runs`: the list of runs, their comparison, and their removal."""

import builtins
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.cli.support import TINY, flags, load
from tiny_gpt.run.output_folder import run_lock
from tiny_gpt.run.status import read_status, write_status

ENDED = time.mktime((2026, 11, 28, 6, 58, 0, 0, 0, -1))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def place(here, trained):
    """`place(name, **changes of status.json)`: a copy of a finished run in runs/; `status=False`: it has none."""

    def copy(name, status=True, **changes):
        folder = here / "runs" / name
        shutil.copytree(trained[0], folder)
        path = folder / "status.json"
        ended = read_status(path)
        path.unlink()
        if status:
            write_status(path, replace(ended, **dict(updated=ENDED) | changes))
        return folder

    return copy


@pytest.fixture
def listed(command):
    """{name: run} that `tiny-gpt runs --json` prints."""
    return lambda: {run["name"]: run for run in json.loads(command("tiny-gpt", "runs", "--json").out)}


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_every_state_is_told_apart(place, listed, dead):
    """Also of a run of an earlier version, which wrote no status.json."""
    place("finished")
    place("stopped", state="stopped")
    place("failed", state="failed", error="the loss became NaN", error_code="diverged")
    place("crashed", state="training", process_id=dead)
    place("running", state="training")
    place("restarting", state="training", process_id=dead, watchdog_id=os.getpid())
    place("elsewhere", state="training", machine="another", updated=time.time())
    place("silent-elsewhere", state="training", machine="another")
    place("earlier-version", status=False)
    crashed = place("earlier-version-crashed", status=False)
    (crashed / "tiny_gpt_final.pt").unlink()
    only_model = place("only-model", status=False)
    for name in ("metrics.jsonl", "config.json"):
        (only_model / name).unlink()
    shutil.rmtree(only_model / "checkpoints")
    found = listed()
    assert {name: run["state"] for name, run in found.items()} == {
        "finished": "finished",
        "stopped": "stopped",
        "failed": "failed",
        "crashed": "crashed",
        "running": "running",
        "restarting": "running",
        "elsewhere": "running",
        "silent-elsewhere": "crashed",
        "earlier-version": "finished",
        "earlier-version-crashed": "crashed",
        "only-model": "model only",
    }
    assert found["failed"]["reason"] == "the loss became NaN"


def test_figures_are_those_of_the_folder(place, listed, trained, text):
    run = (place("a"), listed()["a"])[1]
    results = read_status(trained[0] / "status.json").facts
    n_parameters = load(trained[0] / "tiny_gpt_best.pt").model.n_parameters
    assert run["best_val_bits_per_byte"] == results["best_val_bits_per_byte"]
    assert run["elapsed_s"] == results["elapsed_s"] and run["changed_at"] == ENDED
    assert (run["step"], run["total_steps"], run["best_step"]) == (12, 12, results["best_step"])
    assert run["text"] == [str(text)] and run["n_parameters"] == n_parameters
    sizes = [path.stat().st_size for path in trained[0].rglob("*") if path.is_file()]
    assert abs(run["disk_bytes"] - sum(sizes)) < 1000


def test_a_crashed_run_has_the_figures_of_its_evaluations(place, listed, trained, dead):
    folder = place("a", state="training", process_id=dead)
    rows = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "val_loss": null}\nNaN\n{"step": 14, "val_lo')
    best = min(rows, key=lambda row: row["val_loss"])
    assert listed()["a"]["best_val_bits_per_byte"] == best["val_bits_per_byte"]


@pytest.mark.parametrize("name", ["config.json", "status.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"state": 3}', "[" * 100_000, '{"data": {}}', "\0" * 1000])
def test_malicious_files_are_missing_values(place, command, name, content):
    folder = place("a")
    (folder / name).write_text(content)
    done = command("tiny-gpt", "runs")
    assert done.code == 0 and done.out.splitlines()[1].startswith("a ")


def test_table_names_what_is_no_run(place, command, here):
    place("a\x1b[31m")
    (here / "runs" / "recipes").mkdir()
    (here / "runs" / "notes.txt").touch()
    done = command("tiny-gpt", "runs")
    assert "Nov 28 06:58" in done.out or "2026-11-28" in done.out
    assert "\nIn runs/, but not runs: recipes" in done.out and "\x1b" not in done.out


def test_without_runs_the_list_says_where_it_looked(here, command):
    assert str(here) in command("tiny-gpt", "runs").out


def test_listing_leaves_no_trace(place, command):
    folder = place("a")
    before = sorted(folder.rglob("*"))
    command("tiny-gpt", "runs")
    assert sorted(folder.rglob("*")) == before


def test_listing_loads_no_torch(place):
    place("a")
    program = "import sys; from tiny_gpt.cli.main import main; main(['runs']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "finished" in done.stdout


def test_comparison_shows_what_differs(place, train, command, here):
    place("a")
    train(here / "runs" / "b", learning_rate=0.005)
    done = command("tiny-gpt", "runs", "compare", "a", "b")
    assert "--learning-rate" in done.out and "--epochs" not in done.out and "--out-dir" not in done.out
    assert done.out.rstrip().splitlines()[-1].startswith("b is better, by ")
    compared = json.loads(command("tiny-gpt", "runs", "compare", "a", "b", "--json").out)
    assert compared["best"] == "runs/b" and compared["settings"] == {"learning_rate": [5e-4, 0.005]}


def test_comparison_is_a_page_too(place, command, here):
    """Its chart has every evaluation, and names of runs are text there."""
    place("<script>a")
    place("b")
    done = command("tiny-gpt", "runs", "compare", "<script>a", "b", "--html", here / "comparison.html")
    page = (here / "comparison.html").read_text()
    assert done.code == 0 and "Page: " in done.err
    assert "<script>a" not in page and "&lt;script&gt;a" in page
    assert "another seed alone" in page and page.count('class="dot series-1"') == 2 * 4  # in two sizes


def test_equal_runs_are_not_ranked(place, command):
    place("a")
    place("b")
    out = command("tiny-gpt", "runs", "compare", "a", "b").out
    assert "another seed alone" in out and "All their settings are the same." in out


def test_runs_on_other_texts_are_not_ranked(place, command, here):
    other = here / "other.txt"
    other.write_text("Là-bas, l'été, un élève préfère à tout le reste sa forêt rêvée.\n" * 99)
    settings = flags(**TINY | {"out_dir": here / "runs" / "b"})
    assert command("tiny-gpt", "train", other, "--recipe", "overnight", *settings).code == 0
    place("a")
    out = command("tiny-gpt", "runs", "compare", "a", "b").out
    assert "not trained on the same text" in out and "other.txt" in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["compare", "a"], "runs-not-named"),
        (["compare", "a", "runs/a"], "runs-the-same"),
        (["compare", "a", "nosuch"], "run-not-found"),
        (["remove"], "runs-not-named"),
        (["remove", "a"], "remove-unconfirmed"),
        (["show"], "runs-action-unknown"),
    ],
)
def test_what_cannot_be_done_is_explained(place, command, words, code):
    folder = place("a")
    done = command("tiny-gpt", "runs", *words)
    assert done.code in (2, 3) and done.error_code == code and folder.exists()


def test_a_folder_without_a_run_is_not_compared(place, command, here):
    place("a")
    (here / "runs" / "empty").mkdir()
    command("tiny-gpt", "runs", "compare", "a", "empty").assert_error(3, "not-a-run", "empty")


def test_removal_asks(place, command, monkeypatch):
    folder = place("a")
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    asked = []
    for answer, remains in (("", True), ("n", True), ("y", False)):
        monkeypatch.setattr(builtins, "input", lambda question, answer=answer: asked.append(question) or answer)
        assert command("tiny-gpt", "runs", "remove", "a").code == 0
        assert folder.exists() == remains
    assert "runs/a (finished, best " in asked[0]


def test_removal_keeps_what_tiny_gpt_did_not_write(place, command, here):
    folder = place("a")
    outside = here / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    kept = ["notes.txt", "link", "samples/mine.txt", "checkpoints/elsewhere"]
    (folder / "notes.txt").touch()
    (folder / "trackers" / "wandb").mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    (folder / "samples" / "mine.txt").touch()
    (folder / "checkpoints" / "elsewhere").symlink_to(outside)
    newest = max((folder / "checkpoints").glob("step-*"))
    (newest / "link").symlink_to(outside)
    (folder / "plan.json").symlink_to(outside / "precious.txt")
    done = command("tiny-gpt", "runs", "remove", "a", "--yes")
    assert done.code == 0
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    assert found == {*kept, "plan.json"}
    assert all(name in done.out for name in found)
    assert (outside / "precious.txt").read_text() == "precious"


def test_removal_removes_an_empty_folder_and_several_runs(place, command):
    folders = [place("a"), place("b")]
    assert command("tiny-gpt", "runs", "remove", "a", "b", "--yes").code == 0
    assert not any(folder.exists() for folder in folders)


def test_removal_refuses_a_running_training_and_a_link(place, command, here):
    a, b, c = place("a"), place("b", state="training"), place("c")
    command("tiny-gpt", "runs", "remove", "a", "b", "--yes").assert_error(2, "run-in-use", "b")
    with run_lock(c):  # it is about to begin
        command("tiny-gpt", "runs", "remove", "c", "--yes").assert_error(2, "run-folder-in-use", "c")
    (here / "runs" / "link").symlink_to(a)
    command("tiny-gpt", "runs", "remove", "link", "--yes").assert_error(3, "run-is-a-link", str(a))
    (here / "runs" / "d").mkdir()
    command("tiny-gpt", "runs", "remove", "d", "--yes").assert_error(3, "no-run-to-remove", "d")
    assert all((folder / "tiny_gpt_best.pt").exists() for folder in (a, b, c))
