"""The stages of a long run: what makes hours of training useful on a text that one model has learned in minutes.

A model that reads a small text more than about twenty times overfits, so more time does not make it better. These do:

- pretraining: a model first learns from other text (`--first`), then from the user's own. With more time, several
  models do, each from other initial weights, one after the other.
- teachers, in a run without other text: several models are trained one after the other, each from other initial
  weights. Their mean prediction is better than each of them (an ensemble).
- student: a model that learns from the text and from its teachers' mean prediction at each token (distillation,
  arXiv 1503.02531). One model keeps a part of the ensemble's gain (arXiv 2509.14786), and stays as small. With yet more
  time there are several students, each of which also learns from the last ones before it.
- merging: the best teachers and students, or the pretrained models, side by side as one wide model (model/merging.py),
  which keeps nearly all of the ensemble's gain. It needs no training; run/merged_stages.py does it after the last
  teacher, after each pretrained model but the first, and at the end.

All stages are one run: one sequence of steps, one time budget, one validation text, and the best model of any stage is
the best model of the run. A stage is a range of the run's progress. Within it the learning rate warms up and decays as
in its own run. Pure functions; run/stages.py carries them out. Figures: docs/log/stages.md.
"""

from dataclasses import dataclass, replace
from typing import Literal

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.model.shapes import max_merged
from tiny_gpt.training.schedule import SchedulePoint

Kind = Literal["pretraining", "own", "teacher", "student"]

# The fraction of a run that trains on other text, where neither the user nor a plan says.
FIRST_SHARE = 0.5
# The length of a student's stage, in units of a teacher's: it learns more slowly, from smoother targets.
STUDENT_LENGTH = 1.4
# A student learns from this many of those before it. They differ little from one another, and each takes time and
# memory to predict the text.
N_LAST_STUDENTS = 4
# Multiplies the learning rate after a pretraining: a high rate would make the model forget what it knows.
FINE_TUNING_RATE_FACTOR = 0.5
# Factors of the settings for a student. Soft targets regularize; with the teachers' regularization on top, two thirds
# of the ensemble's gain were lost, and these factors kept 84%.
DISTILLATION = {"dropout": 2 / 3, "weight_decay": 0.75, "token_noise": 0.5}
# Other text is read about once: there is little to regularize.
PRETRAINING_WEIGHT_DECAY = 0.1
# Each stage warms up in this fraction of its length, and its first step has at least a twentieth of the peak rate.
WARMUP_SHARE, MIN_WARMUP = 0.02, 0.05


@dataclass(frozen=True)
class Stage:
    """A part of a run."""

    kind: Kind
    start: float
    end: float
    """Fractions of the run's progress."""
    number: int = 1
    """Counted from 1 among the stages of its kind."""
    n_of_kind: int = 1
    is_fine_tuning: bool = False
    """Whether the stage continues with the model of the pretraining before it, on the own text."""

    def __str__(self) -> str:
        name = "your text" if self.kind == "own" else self.kind
        return f"{name} {self.number} of {self.n_of_kind}" if self.n_of_kind > 1 else name


@dataclass(frozen=True)
class StageSettings:
    """The settings that a stage changes."""

    dropout: float
    weight_decay: float
    token_noise: float

    def scaled(self, factors: dict[str, float]) -> "StageSettings":
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})


def stages_of(train: TrainConfig) -> tuple[Stage, ...]:
    """The stages of a run; a single one, `own`, for a run without teachers or other text."""
    n, unit = n_pretrainings(train), model_share(train)
    parts: list[tuple[Kind, float, int, int]] = []
    for number in range(1, n + 1):
        parts += [("pretraining", pretraining_share(train), number, n), ("own", unit, number, n)]
    parts += [("teacher", unit, number, train.teachers) for number in range(1, train.teachers + 1)]
    n_students = train.students if train.teachers else 0
    parts += [("student", STUDENT_LENGTH * unit, number, n_students) for number in range(1, n_students + 1)]
    parts = parts or [("own", 1.0, 1, 1)]
    stages, start = [], 0.0
    for index, (kind, length, number, n_of_kind) in enumerate(parts):
        # The last one to the very end, whatever the rounding of the sums.
        end = start + length if index < len(parts) - 1 else 1.0
        stages.append(Stage(kind, start, end, number, n_of_kind, is_fine_tuning=kind == "own" and n > 0))
        start = end
    return tuple(stages)


def with_pretraining_to(stages: tuple[Stage, ...], index: int, end: float) -> tuple[Stage, ...]:
    """`stages` with the pretraining at `index`, which one on the own text follows, ending at `end`."""
    pretraining, own = stages[index : index + 2]
    end = max(pretraining.start, end)
    return *stages[:index], replace(pretraining, end=end), replace(own, start=end), *stages[index + 2 :]


def with_stage_at(stages: tuple[Stage, ...], index: int, start: float, end: float) -> tuple[Stage, ...]:
    """`stages` with that at `index` from `start` to `end`, and later ones after it: some may be left without time."""
    end = min(1.0, end)
    later = (replace(stage, start=max(stage.start, end), end=max(stage.end, end)) for stage in stages[index + 1 :])
    return *stages[:index], replace(stages[index], start=start, end=end), *later


def n_pretrainings(train: TrainConfig) -> int:
    return train.pretrainings if train.first_share else 0


def n_to_merge(train: TrainConfig) -> int:
    """How many models a run trains that may be merged into one."""
    return train.teachers + train.students if train.teachers else n_pretrainings(train)


def n_merged(config: RunConfig, vocab_size: int) -> int:
    """How many of these are merged; fewer than 2 if none are."""
    return min(n_to_merge(config.train), max_merged(config.model, vocab_size))


def pretraining_share(train: TrainConfig) -> float:
    """The fraction of the run that one pretraining has."""
    return train.first_share / train.pretrainings


def model_share(train: TrainConfig) -> float:
    """The fraction of the run that a teacher has; in a run without teachers, a model on the user's own text."""
    if train.teachers:
        return 1 / (train.teachers + train.students * STUDENT_LENGTH)
    return (1 - train.first_share) / max(1, n_pretrainings(train))


def last_share(train: TrainConfig) -> float:
    """The fraction of the run that the last stage has."""
    return model_share(train) * (STUDENT_LENGTH if train.teachers and train.students else 1.0)


def settings_of(config: RunConfig, stage: Stage) -> StageSettings:
    """The settings of a stage. Those of `config` are for a teacher, or for a stage on the own text."""
    settings = StageSettings(config.model.dropout, config.train.weight_decay, config.train.token_noise)
    if stage.kind == "pretraining":
        return StageSettings(0.0, min(settings.weight_decay, PRETRAINING_WEIGHT_DECAY), 0.0)
    return settings.scaled(DISTILLATION) if stage.kind == "student" else settings


def stage_index(stages: tuple[Stage, ...], progress: float) -> int:
    """The stage that `progress` of the run falls into."""
    return max(index for index, stage in enumerate(stages) if stage.start <= progress or index == 0)


def stage_point(point: SchedulePoint, stage: Stage, start: float) -> SchedulePoint:
    """Where a step at `point` of the run stands in its stage, which began at the progress `start`.

    A stage may begin later than planned: where the machine slept over its beginning, or where a run is extended.
    """
    if stage.kind == "own" and not stage.is_fine_tuning:  # the only one
        return point
    progress = min(1.0, max(0.0, point.progress - start) / max(1e-9, stage.end - start))
    return SchedulePoint(
        progress=point.progress,
        warmup_done=max(MIN_WARMUP * WARMUP_SHARE, progress),
        warmup_length=WARMUP_SHARE,
        decay_progress=max(0.0, progress - WARMUP_SHARE) / (1 - WARMUP_SHARE),
        is_last=point.is_last,
        peak_fraction=FINE_TUNING_RATE_FACTOR if stage.is_fine_tuning else 1.0,
        is_fine_tuning=stage.is_fine_tuning,
    )
