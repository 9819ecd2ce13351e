"""Stages of runs with a budget of time: how long each is, and what a sleep of the machine leaves of it. The clock is
simulated."""

from pathlib import Path

import pytest

from tests.run.support import FRENCH, NOON, events_of, nine_seconds, of, share, with_data, with_train
from tiny_gpt.config import MODELS_FOLDER, PRETRAINED_FILE, TEACHERS_FOLDER
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish as prepared
from tiny_gpt.run import kept_models, stages
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.events import Evaluated, StageBegun, StepDone, Warned
from tiny_gpt.run.other_text import tokenizer_for
from tiny_gpt.run.run import run
from tiny_gpt.training.budget import RunRequest


@pytest.fixture
def config(config):
    return nine_seconds(config)


def staged_events(config, machine, slept_after, sleep_s):
    """All events of a run; once its progress is `slept_after`, the machine sleeps for `sleep_s`."""
    found = []
    for event in run(config):
        found.append(event)
        if isinstance(event, StepDone):
            machine.pass_time(0.1)
            if slept_after is not None and event.progress >= slept_after:
                machine.now, slept_after = machine.now + sleep_s, None
    return found


@pytest.mark.parametrize(("slept_after", "kept"), [(0.15, ["2.pt"]), (None, ["1.pt", "2.pt"])])
def test_a_teacher_that_a_sleep_cut_short_is_not_used(config, machine, monkeypatch, slept_after, kept):
    monkeypatch.setattr(Evaluator, "eval_s", lambda _: 0.0)  # so it is evaluated as often as it may be
    monkeypatch.setattr(kept_models, "MAX_BEHIND", 100.0)
    config = with_train(config, for_="20s", teachers=2, schedule="wsd", min_learning_rate=0.0)
    events = staged_events(config, machine, slept_after, sleep_s=12)
    begun = of(StageBegun, events)
    assert [event.name for event in begun] == ["teacher 1 of 2", "teacher 2 of 2", "student"]
    assert sorted(path.name for path in (Path(config.train.out_dir) / TEACHERS_FOLDER).iterdir()) == kept
    assert ("a teacher," in begun[-1].description) == (slept_after is not None)
    assert sum("cut short" in event.text for event in of(Warned, events)) == (slept_after is not None)


@pytest.fixture
def own_text_last(config, tmp_path, monkeypatch):
    """Twenty seconds that begin with French: by the plan, half of them; the own text then gets 30 steps."""
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Evaluator, "eval_s", lambda _: 0.0)
    (tmp_path / "french.txt").write_text(FRENCH)
    config = with_data(config, first=(str(tmp_path / "french.txt"),))
    n_tokens = len(prepared(prepare(config.data, 8, prepared(tokenizer_for(config)))).train)
    own_data_epochs = 30 * config.train.batch_size * config.model.block_size / n_tokens
    schedule = dict(schedule="wsd", min_learning_rate=0.0)
    return with_train(config, for_="20s", first_share=0.5, own_data_epochs=own_data_epochs, **schedule)


def own_steps(events):
    """The first and the last step on the own text."""
    (begun,) = (event.step for event in of(StageBegun, events) if event.name == "your text")
    return begun + 1, of(StepDone, events)[-1].step


@pytest.mark.parametrize("step_s", [0.05, 0.2])
def test_passes_over_the_own_text_do_not_depend_on_the_speed(own_text_last, machine, step_s):
    events = events_of(own_text_last, machine, step_s=step_s)
    first, last = own_steps(events)
    assert last - first + 1 == pytest.approx(30, abs=3) and last > 80
    steps = {event.step: event for event in of(StepDone, events)}
    assert share(steps[first - 1], own_text_last) < 0.1, "the pretraining has its own cool-down"
    assert share(steps[first + 5], own_text_last) > 0.4 and steps[last].learning_rate == 0
    n_evaluations = sum(event.step >= first for event in of(Evaluated, events))
    assert n_evaluations >= stages.MIN_FINE_TUNING_EVALS - 1


def test_a_slow_first_step_does_not_end_the_pretraining(own_text_last, machine):
    """It compiles; with its time, the own text would take longer than the run."""
    first, last = own_steps(events_of(own_text_last, machine, step_s=0.05, first_s=5.0))
    assert last - first + 1 == pytest.approx(30, abs=3) and first > 150


def test_a_stopped_run_with_stages_cools_down_in_its_stage(config, machine):
    config = with_train(config, for_="20s", teachers=2, schedule="wsd", min_learning_rate=0.0)

    stopped = events_of(config, machine, until=lambda event: isinstance(event, StepDone) and event.progress > 0.4)
    last = of(StepDone, stopped)[-1]
    longer = with_train(config, for_="3s", cooldown=1.0)
    events = events_of(longer, machine, True, RunRequest(NOON, extends=True))
    rates = [share(event, config) for event in of(StepDone, events)]
    assert not of(StageBegun, events) and len(rates) > 10
    assert rates[0] == pytest.approx(share(last, config), rel=0.2)
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0


def test_several_models_have_equally_much_time(own_text_last, machine):
    """The own text gets 30 steps of each, at any speed."""
    events = events_of(with_train(own_text_last, pretrainings=2), machine, step_s=0.05)
    begun = [event.step for event in of(StageBegun, events)]
    last = of(StepDone, events)[-1].step
    assert [event.name for event in of(StageBegun, events)][1::2] == ["your text 1 of 2", "your text 2 of 2"]
    assert begun[2] == pytest.approx(last / 2, abs=3)
    assert [begun[2] - begun[1], last - begun[3]] == pytest.approx([30, 30], abs=3)


def test_a_model_that_was_pretrained_before_a_long_sleep_learns_the_own_text_after_it(own_text_last, machine):
    """Which it slept through, and a part of the next pretraining."""
    config = with_train(own_text_last, pretrainings=2)
    events = staged_events(config, machine, slept_after=0.42, sleep_s=3)
    own_1, own_2 = [event.step for event in of(StageBegun, events) if event.name.startswith("your text")]
    next_one = next(event.step for event in of(StageBegun, events) if event.name == "pretraining 2 of 2")
    assert 5 < next_one - own_1 < 40 and own_2 > next_one


def test_after_such_a_sleep_a_killed_process_continues_with_the_own_text(own_text_last, machine):
    config = with_train(own_text_last, pretrainings=2)
    found, slept_after = [], 0.42
    events = run(config)
    for event in events:
        found.append(event)
        if isinstance(event, StepDone):
            machine.pass_time(0.1)
            if slept_after is not None and event.progress >= slept_after:
                machine.now, slept_after = machine.now + 3, None
            if event.step > 3 + max((begun.step for begun in of(StageBegun, found)), default=0) and slept_after is None:
                break
    events.close()
    assert of(StageBegun, found)[-1].name == "your text 1 of 2"
    n_before = found[-1].step
    rest = events_of(config, machine, resume=True)
    next_one = next(event.step for event in of(StageBegun, rest) if event.name == "pretraining 2 of 2")
    assert next_one - n_before > 3


def test_both_models_of_such_a_run_are_kept(own_text_last, machine):
    config = with_train(own_text_last, pretrainings=2)
    staged_events(config, machine, slept_after=0.42, sleep_s=3)
    assert all((Path(config.train.out_dir) / MODELS_FOLDER / f"{number}.pt").exists() for number in (1, 2))


def test_more_time_goes_to_the_last_of_several_pretrainings(own_text_last, machine):
    config = with_train(own_text_last, pretrainings=2)
    before = of(StageBegun, events_of(config, machine))[3].step
    events = events_of(config, machine, True, RunRequest(NOON, 0.0, extends=True))
    steps = of(StepDone, events)
    assert before - 50 < steps[0].step < before and share(steps[9], config) == 1
    (begun,) = of(StageBegun, events)
    assert begun.name == "your text 2 of 2" and steps[-1].step - begun.step == pytest.approx(30, abs=3)


def test_more_time_goes_to_the_pretraining(own_text_last, machine):
    """From before its learning rate decayed; then the own text is read as often as in the run itself."""
    before, _ = own_steps(events_of(own_text_last, machine))
    events = events_of(own_text_last, machine, True, RunRequest(NOON, 0.0, extends=True))
    steps, (first, last) = of(StepDone, events), own_steps(events)
    assert steps[0].step < before - 50 and share(steps[9], own_text_last) == 1
    assert first - steps[0].step == pytest.approx(last - steps[0].step - 30, abs=3) and last - steps[0].step > 170


@pytest.mark.parametrize(("slept_after", "sleep_s", "is_kept"), [(0.2, 12, True), (0.0, 30, False)])
def test_a_pretraining_that_a_sleep_cut_short_is_used_once_it_was_evaluated(
    config, machine, tmp_path, monkeypatch, slept_after, sleep_s, is_kept
):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Evaluator, "eval_s", lambda _: 0.0)  # so it is evaluated as often as it may be
    (tmp_path / "french.txt").write_text(FRENCH)
    config = with_train(config, for_="20s", first_share=0.4, schedule="wsd", min_learning_rate=0.0)
    config = with_data(config, first=(str(tmp_path / "french.txt"),))
    events = staged_events(config, machine, slept_after, sleep_s)
    assert [event.name for event in of(StageBegun, events)] == ["pretraining", "your text"]
    assert (Path(config.train.out_dir) / PRETRAINED_FILE).exists() == is_kept
    assert any("training: pretraining" in event.text for event in of(Warned, events))
