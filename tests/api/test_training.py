"""`tiny_gpt.train`, `plan` and `Run` in a Python program, with trainings of seconds."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

import tiny_gpt
from tests.run.support import TEXT
from tiny_gpt.config import BEST_FILE, FINAL_FILE
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.run.events import Checkpointed, Evaluated, Finished, StepDone

TINY = dict(
    recipe="overnight",
    epochs=2,
    iters_per_epoch=10,
    eval_interval=5,
    n_layer=1,
    n_head=2,
    d_model=16,
    d_ff=32,
    block_size=8,
    batch_size=4,
    warmup_steps=2,
    tokenizer="byte",
    backend="eager",
    precision="fp32",
    device="cpu",
    keep_awake=False,
)


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "animals.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def train(text):
    """`train(**settings)`: a tiny training without a display."""

    def run(**settings):
        return tiny_gpt.train(text, **TINY | {"progress": False} | settings)

    return run


def test_the_package_lists_its_functions_without_loading_torch():
    program = "import sys, tiny_gpt; print(dir(tiny_gpt)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(repr(name) in done.stdout for name in ("train", "plan", "Run", "load"))
    with pytest.raises(AttributeError):
        tiny_gpt.trane  # noqa: B018


def test_a_run_has_its_results(train):
    events = []
    run = train(callbacks=[events.append])
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert run.state == "finished" and run.folder.name == "animals"
    assert run.metrics["step"].tolist() == [5, 10, 15, 20]
    assert run.metrics["val_loss"].tolist() == [event.val_loss for event in evaluated]
    assert {column.dtype for column in run.metrics.values()} == {np.dtype(float)}
    assert run.finished == events[-1] and isinstance(run.finished, Finished)
    assert run.samples[-1].text.startswith("The")
    assert run.best_model.generate("the", max_tokens=5, seed=1) == tiny_gpt.load(run.folder).generate(
        "the", max_tokens=5, seed=1
    )
    assert run.final_model.loaded.progress.step == 20
    assert run.config.model.d_model == 16 and run.plan is None
    assert "<svg" in run.report().read_text(encoding="utf-8")


def test_twice_in_one_process_gives_two_equal_runs(train):
    first, second = train(), train()
    assert (first.folder.name, second.folder.name) == ("animals", "animals-2")
    for name in ("train_loss", "val_loss", "grad_norm"):
        assert first.metrics[name].tolist() == second.metrics[name].tolist()


def test_leaving_the_loop_saves_and_resume_ends_like_an_uninterrupted_run(train):
    whole, run = train(), train(wait=False)
    assert "not started" in repr(run)
    for event in run:
        if isinstance(event, StepDone) and event.step == 7:
            break
    assert run.state == "stopped" and run.finished.last_step >= 7
    assert (run.folder / BEST_FILE).exists()
    run.resume(progress=False)
    assert run.state == "finished"
    assert run.metrics["val_loss"][-1] == whole.metrics["val_loss"][-1]


def test_a_callback_can_stop_a_run(train):
    run = train(wait=False, callbacks=[lambda event: isinstance(event, Checkpointed) and run.stop()])
    run.wait()
    assert run.finished.stopped_by and run.finished.last_step < 20


def test_a_callback_that_fails_does_not_end_the_run(train, capsys):
    assert train(callbacks=[lambda event: 1 / 0]).state == "finished"
    assert "division by zero" in capsys.readouterr().err


def test_a_finished_run_is_extended_only_by_more_time_or_steps(train):
    run = tiny_gpt.Run(train().folder)
    with pytest.raises(UsageError) as failure:
        run.resume()
    assert failure.value.code == "resume-of-finished-run"
    assert run.resume(steps=24, progress=False).finished.last_step == 24
    assert run.metrics["step"].tolist() == [5, 10, 15, 20, 24]


def test_a_run_that_has_nothing_to_train_says_so(train):
    with pytest.raises(UsageError) as failure:
        next(iter(train()))
    assert failure.value.code == "nothing-to-train"


def test_hours_are_a_time_budget(text):
    timed = {name: value for name, value in TINY.items() if name != "epochs"}
    run = tiny_gpt.train("animals.txt", hours=1.5 / 3600, progress=False, **timed)
    assert run.summary.total_steps is None and run.state == "finished"


@pytest.mark.parametrize(
    ("settings", "kind", "code"),
    [
        (dict(n_layers=3), BadInputError, "setting-unknown"),
        (dict(n_layer="many"), BadInputError, "setting-wrong-type"),
        (dict(recipe="best"), UsageError, "recipe-unknown"),
        (dict(hours=0), UsageError, "hours-out-of-range"),
        (dict(hours="1h"), UsageError, "hours-out-of-range"),
        (dict(devices="2"), UsageError, "devices-in-one-process"),
        (dict(hours=1, steps=5), BadInputError, "several-budgets"),
        (dict(start_from="nothing"), BadInputError, "no-model-yet"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(text, settings, kind, code):
    with pytest.raises(kind) as failure:
        tiny_gpt.train(text, **settings)
    assert failure.value.code == code
    assert not (text.parent / "runs").exists()


@pytest.mark.parametrize("source", ["", [], "missing.txt"])
def test_a_missing_text_is_named(text, source):
    with pytest.raises((UsageError, BadInputError)):
        tiny_gpt.train(source, **TINY, progress=False)


def test_an_unknown_run_is_named(text):
    with pytest.raises(BadInputError) as failure:
        tiny_gpt.Run("nothing")
    assert failure.value.code == "run-not-found"


def test_a_half_written_line_of_metrics_is_left_out(train):
    run = train()
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "tra')
    assert run.metrics["step"].tolist() == [5, 10, 15, 20]


def test_a_lost_final_model_is_an_error(train):
    run = train()
    (run.folder / FINAL_FILE).unlink()
    with pytest.raises(BadInputError):
        run.final_model  # noqa: B018


@pytest.mark.slow
def test_a_plan_says_what_train_would_do(text):
    text.write_text(TEXT * 3)
    settings = {name: value for name, value in TINY.items() if name not in ("epochs", "warmup_steps")}
    plan = tiny_gpt.plan(text, steps=30, **settings)
    assert plan.plan.steps == 30 and plan.config.model.d_model == 16
    assert 0 < plan.forecast.low <= plan.forecast.bits_per_byte <= plan.forecast.high <= 8
    assert "30 steps" in str(plan) and math.isfinite(plan.plan.seconds)
    assert dataclasses.asdict(plan.plan)
