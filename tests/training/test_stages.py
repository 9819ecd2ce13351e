"""Stages as ranges of a run's progress, and the learning rate within each."""

from dataclasses import replace

import pytest

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.training.schedule import learning_rate, schedule_point
from tiny_gpt.training.stages import (
    FINE_TUNING_RATE_FACTOR,
    last_share,
    model_share,
    settings_of,
    stage_index,
    stage_point,
    stages_of,
)

WSD = TrainConfig(schedule="wsd", min_learning_rate=0.0, steps=1000, warmup_steps=20)


def stages(**train):
    return stages_of(replace(WSD, **train))


def rates(**train):
    """The learning rate of every step."""
    config, parts = replace(WSD, **train), stages(**train)
    result = []
    for step in range(config.total_steps):
        point = schedule_point(step, config.total_steps, config.warmup_steps)
        part = parts[stage_index(parts, point.progress)]
        result.append(learning_rate(stage_point(point, part, part.start), config))
    return result


def test_a_run_without_teachers_or_other_text_is_one_stage():
    (only,) = stages()
    point = schedule_point(7, 1000, 20)
    assert (only.kind, only.start, only.end) == ("own", 0.0, 1.0)
    assert stage_point(point, only, 0.0) == point


@pytest.mark.parametrize(
    "train",
    [
        dict(teachers=3),
        dict(first_share=0.4),
        dict(first_share=0.6, pretrainings=3),
    ],
)
def test_stages_fill_the_run_without_gaps(train):
    parts = stages(**train)
    assert [part.start for part in parts] == [0.0, *(part.end for part in parts[:-1])] and parts[-1].end == 1.0
    config = replace(WSD, **train)
    assert parts[-1].end - parts[-1].start == pytest.approx(last_share(config))
    if config.teachers:
        assert parts[-2].end - parts[-2].start == pytest.approx(model_share(config))


def test_the_rate_warms_up_and_decays_to_nearly_zero_in_each_stage():
    parts, by_step = stages(teachers=3), rates(teachers=3)
    for part in parts:
        first, last = round(part.start * 999) + 1, round(part.end * 999) - 1
        rate = by_step[first : last + 1]
        assert rate[0] < 0.3 * WSD.learning_rate and rate[-1] < 0.05 * WSD.learning_rate
        assert max(rate) == pytest.approx(WSD.learning_rate)


def test_a_student_is_regularized_less_than_its_teachers():
    config = RunConfig()
    config = replace(config, model=replace(config.model, dropout=0.3))
    config = replace(config, train=replace(WSD, teachers=1, weight_decay=2.0, token_noise=0.1))
    teacher, student = (settings_of(config, stage) for stage in stages_of(config.train))
    assert (teacher.dropout, teacher.weight_decay, teacher.token_noise) == (0.3, 2.0, 0.1)
    assert 0 < student.dropout < 0.3 and 0 < student.weight_decay < 2.0 and 0 < student.token_noise < 0.1


def test_each_of_several_models_has_a_pretraining_and_the_own_text_for_equally_long():
    parts = stages(first_share=0.6, pretrainings=3)
    assert [part.kind for part in parts] == 3 * ["pretraining", "own"]
    assert [str(part) for part in parts[:2]] == ["pretraining 1 of 3", "your text 1 of 3"]
    assert [part.end - part.start for part in parts] == pytest.approx(3 * [0.6 / 3, 0.4 / 3])


def test_a_pretrained_stage_learns_at_a_lower_rate():
    pretraining, only = stages(first_share=0.5)
    point = schedule_point(500, 1000, 20)
    assert stage_point(point, only, 0.4).peak_fraction == FINE_TUNING_RATE_FACTOR
    assert stage_point(point, pretraining, 0.0).peak_fraction == 1.0
