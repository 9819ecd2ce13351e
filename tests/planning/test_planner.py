"""The planner's calibration, and the tokenizer of the recipe `auto`."""

import itertools
from dataclasses import replace

import pytest

from tests.planning.support import FIVE_MINUTES, make_planner, step_time
from tiny_gpt.config import DataConfig
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.data.choose_tokenizer import auto_tokenizer
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.planning import planner as planner_module
from tiny_gpt.planning.throughput import StepTimeModel


@pytest.fixture
def measured(monkeypatch):
    """The configs whose steps were measured, on a machine half as fast as predicted."""
    configs = []

    def twice_as_long(config, *_):
        configs.append(config)
        return 2 * step_time(config)

    monkeypatch.setattr(planner_module, "known_step_s", twice_as_long)
    return configs


def test_calibration_measures_the_chosen_model(measured):
    planner = make_planner(vocab_size=4096)
    calibrated = planner.calibrated(FIVE_MINUTES)
    (config,) = measured
    assert calibrated.step_time(config) == pytest.approx(2 * step_time(config))
    assert (config.train.backend, config.train.precision) == ("fused", "bf16")
    assert calibrated.plan(FIVE_MINUTES)[1].steps < planner.plan(FIVE_MINUTES)[1].steps


def test_steps_of_seconds_are_not_calibrated(measured):
    slow = make_planner()._replace(step_time=StepTimeModel(5.0, 2e-12, 4096))
    assert slow.calibrated(FIVE_MINUTES) is slow and measured == []


def test_auto_uses_characters_for_tiny_texts_only(tmp_path):
    assert auto_tokenizer(10_000) == "char" and auto_tokenizer(10_000_000) == "bpe"
    path = tmp_path / "text.txt"
    path.write_text("a little text. " * 200)
    dataset = finish(prepare(DataConfig((str(path),), tokenizer="auto"), 8))
    assert dataset.tokenizer.to_dict()["type"] == "char"


def test_a_night_has_teachers_and_students_and_given_numbers_stay():
    planner, night = make_planner(), replace(RECIPES["auto"], train=replace(RECIPES["auto"].train, for_="6h"))
    train = planner.plan(night)[0].train
    assert train.teachers > 1 and train.students > 1 and train.first_share > 0
    auto = tuple(name for name in night.train.auto if name != "students")
    given = replace(night, train=replace(night.train, students=2, auto=auto))
    assert planner.plan(given)[0].train.students == 2
    alone = replace(night, data=replace(night.data, first=("none",)))
    assert planner.plan(alone)[0].train.first_share == 0
    five_minutes = replace(night, train=replace(night.train, for_="5m"))
    assert planner.plan(five_minutes)[0].train.teachers == 0
    german = planner._replace(text=replace(planner.text, english_share=0.2))
    train = german.plan(night)[0].train
    assert train.first_share == 0 and train.teachers > 1


def test_a_teacher_has_time_for_some_hundred_steps():
    planner, short = make_planner(), replace(RECIPES["auto"], train=replace(RECIPES["auto"].train, for_="20s"))
    tiny = planner._replace(text=replace(planner.text, train_bytes=900, train_tokens=900))
    slow = tiny._replace(step_time=tiny.step_time.scaled(100))
    assert slow.plan(short)[0].train.teachers == 0 and slow.plan(short)[0].train.first_share == 0
    assert tiny.plan(short)[0].train.teachers > 0


@pytest.mark.parametrize("n_bytes", [135_000, 1_000_000])
@pytest.mark.parametrize("slowness", [1, 50])
def test_more_time_is_expected_to_give_a_better_model(n_bytes, slowness):
    planner, night = make_planner(), RECIPES["auto"]
    text = replace(planner.text, train_bytes=n_bytes, train_tokens=n_bytes // 2)
    planner = planner._replace(text=text, step_time=planner.step_time.scaled(slowness))
    times = ("2m", "20m", "1h", "2h", "6h", "24h")
    plans = [planner.plan(replace(night, train=replace(night.train, for_=time)))[1] for time in times]
    losses = [plan.forecast.bits_per_byte for plan in plans]
    # On a fast machine the smallest text has given all that it can before the night is over.
    assert all(longer < shorter * (1 + 1e-4) for shorter, longer in itertools.pairwise(losses)), losses
    assert losses[-1] < 0.98 * losses[0]
