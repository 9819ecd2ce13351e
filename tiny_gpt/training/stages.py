"""The stages of a long run: what makes hours of training useful on a text that one model has learned in minutes.

A model that reads a small text more than about ten times overfits, so more time does not make it better. These do:

- pretraining: the model first learns from other text (`--first`), then from the user's own.
- teachers: several models are trained one after the other, each from other initial weights. Their mean prediction is
  better than each of them (an ensemble).
- student: the last model learns from the text and from its teachers' mean prediction at each token (distillation,
  arXiv 1503.02531). One model keeps most of the ensemble's gain (arXiv 2509.14786), and stays one ordinary model.

All stages are one run: one sequence of steps, one time budget, one validation text, and the best model of any stage is
the best model of the run. A stage is a range of the run's progress. Within it the learning rate warms up and decays as
in a run of its own. Pure functions; run/stages.py carries them out. Figures: docs/log/stages.md.
"""

from dataclasses import dataclass
from typing import Literal

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.training.schedule import SchedulePoint

Kind = Literal["pretraining", "teacher", "student", "only"]

# The fraction of a run that trains on other text, where neither the user nor a plan says.
FIRST_SHARE = 0.5
# The student reads the text more often than a teacher, for it learns more slowly from smoother targets: its share of
# the time, in units of a teacher's.
STUDENT_SHARE = 1.4
# Soft targets regularize. With the teachers' dropout, weight decay and token noise on top, two thirds of the ensemble's
# gain were lost; these factors of them kept 84%.
STUDENT_REGULARIZATION = {"dropout": 2 / 3, "weight_decay": 0.75, "token_noise": 0.5}
# A pretrained model has less to learn from the own text, and a high rate would make it forget what it knows.
FINE_TUNING_RATE_FACTOR = 0.5
# Other text is read about once: nothing to regularize.
PRETRAINING = {"dropout": 0.0, "weight_decay": 0.1, "token_noise": 0.0}
# Each stage warms up in this fraction of its length, and its first step has at least a twentieth of the peak rate.
WARMUP_SHARE, MIN_WARMUP = 0.02, 0.05


@dataclass(frozen=True)
class Stage:
    """A part of a run, and the settings that it changes."""

    kind: Kind
    number: int
    """Counted from 1 among the stages of its kind."""
    n_of_kind: int
    start: float
    end: float
    """Fractions of the run's progress."""
    dropout: float
    weight_decay: float
    token_noise: float
    rate_factor: float = 1.0
    """Multiplies the learning rate."""

    def __str__(self) -> str:
        return f"{self.kind} {self.number} of {self.n_of_kind}" if self.n_of_kind > 1 else self.kind


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a run with complete settings; a single one, `only`, for a run without teachers or other text."""
    train = config.train
    stages, start = [], 0.0
    if train.first_share:
        stages.append(_stage(config, "pretraining", 1, 1, 0.0, start := train.first_share))
    unit = teacher_share(train)
    for number in range(1, train.teachers + 1):
        stages.append(_stage(config, "teacher", number, train.teachers, start, start := start + unit))
    # To the very end, whatever the rounding of the sums.
    stages.append(_stage(config, "student" if train.teachers else "only", 1, 1, start, 1.0))
    return tuple(stages)


def teacher_share(train: TrainConfig) -> float:
    """The fraction of the run in which one teacher is trained; of a run without teachers, in which its model is."""
    return (1 - train.first_share) / (train.teachers + STUDENT_SHARE if train.teachers else 1.0)


def last_share(train: TrainConfig) -> float:
    """The fraction of the run that the last stage has."""
    return teacher_share(train) * (STUDENT_SHARE if train.teachers else 1.0)


def _stage(config: RunConfig, kind: Kind, number: int, n_of_kind: int, start: float, end: float) -> Stage:
    values = {
        "dropout": config.model.dropout,
        "weight_decay": config.train.weight_decay,
        "token_noise": config.train.token_noise,
        "learning_rate": 1.0,
    }
    if kind == "pretraining":
        values |= {name: min(values[name], value) for name, value in PRETRAINING.items()}
    elif config.train.first_share:
        values["learning_rate"] = FINE_TUNING_RATE_FACTOR
    if kind == "student":
        values = {name: value * STUDENT_REGULARIZATION.get(name, 1.0) for name, value in values.items()}
    rate_factor = values.pop("learning_rate")
    return Stage(kind, number, n_of_kind, start, end, **values, rate_factor=rate_factor)


def stage_index(stages: tuple[Stage, ...], progress: float) -> int:
    """The stage that `progress` of the run falls into."""
    return max(index for index, stage in enumerate(stages) if stage.start <= progress or index == 0)


def stage_point(point: SchedulePoint, stage: Stage, start: float) -> SchedulePoint:
    """Where a step at `point` of the run stands in its stage, which began at the progress `start`.

    A stage may begin later than planned: where the machine slept over its beginning, or where a run is extended.
    """
    if stage.kind == "only" and stage.start == 0:
        return point
    progress = min(1.0, max(0.0, point.progress - start) / max(1e-9, stage.end - start))
    return SchedulePoint(
        progress=point.progress,
        warmup_done=max(MIN_WARMUP * WARMUP_SHARE, progress),
        warmup_length=WARMUP_SHARE if point.peak_fraction == 1 else 0.0,
        decay_progress=max(0.0, progress - WARMUP_SHARE) / (1 - WARMUP_SHARE),
        is_last=point.is_last,
        peak_fraction=point.peak_fraction * stage.rate_factor,
    )
