"""What a training run reports. Progress bars, metrics files and samples are made from these events alone.

Losses are mean cross-entropy in nats per token. Steps and epochs count from 1 and name what is finished.
"""

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tiny_gpt.config import ModelConfig, TrainConfig
from tiny_gpt.data.progress import Measuring, Notice, StageProgress
from tiny_gpt.planning.types import Plan

# What a run with --start-from is scored on before and after (forgetting.py).
REFERENCE_TEXT = "Python's manual"


@dataclass(frozen=True)
class Prepared:
    """Text, model and settings are ready; the first step comes next."""

    device: str
    precision: str
    backend: str
    backend_reason: str
    """The measurements that backend and precision were chosen by."""
    sources: list[str]
    """The text's sources as they were used, fallbacks named."""
    n_characters: int
    n_documents: int
    notes: list[str]
    """What the user should know about the text, a line each."""
    model: ModelConfig
    train: TrainConfig
    """Both as they are used, with a value for every setting that was left open."""
    tokenizer: str
    vocab_size: int
    train_tokens: int
    val_tokens: int
    val_tokens_scored: int
    n_parameters: int
    tokens_per_step: int
    earlier_run: Path | None
    """Where the files of an earlier run in the same folder are now."""
    steps_done: int
    """Steps done before a resume; 0 for a new run."""
    history: list["Evaluated"]
    """The evaluations of those steps."""
    total_steps: int = 0
    """Steps of the whole run; 0 for a timed one."""
    left_s: float | None = None
    """Seconds until a timed run ends."""
    plan: Plan | None = None
    """What to expect of the run, where the planner chose its settings."""


@dataclass(frozen=True)
class StepDone:
    """One optimizer update. `batch_loss` is None for most steps, since reading it waits for the device."""

    step: int
    batch_loss: float | None
    learning_rate: float
    progress: float = 0.0
    """0 at the first step of the run's budget, 1 at the last."""
    left_s: float | None = None
    """Seconds until a timed run ends."""


@dataclass(frozen=True)
class StageBegun:
    """Another stage of the run begins after `step`; see training/stages.py."""

    step: int
    description: str
    """For the user, such as "pretraining 1 of 2 on 1,000,000 tokens of other text"."""
    name: str
    """Such as "teacher 2 of 4"."""


@dataclass(frozen=True)
class Merged:
    """Models of ended stages have been merged into one (model/merging.py)."""

    step: int
    n_models: int
    n_parameters: int
    """Of the merged one."""
    val_bits_per_byte: float
    best_alone: float
    """Bits per byte of the best model that the run had trained by then."""

    @property
    def text(self) -> str:
        """For the user."""
        size = f"{self.n_parameters / 1e6:,.1f} M parameters"
        return (
            f"{self.n_models} models merged into one of {size}: {self.val_bits_per_byte:.3f} bits per byte, the best "
            f"single model {self.best_alone:.3f}"
        )


@dataclass(frozen=True)
class ThroughputMeasured:
    """The first steps have been timed."""

    tokens_per_s: float
    remaining_s: float
    """Until the last step at this throughput, evaluations included."""


@dataclass(frozen=True)
class Evaluated:
    """Losses over the fixed windows, without dropout, and where the run is."""

    step: int
    epoch: int
    train_loss: float
    val_loss: float
    val_bits_per_byte: float
    batch_loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    elapsed_s: float
    val_loss_error: float = math.nan
    """Standard error of `val_loss`, from how much its windows differ; NaN for a single window."""
    memory_bytes: float = math.nan
    """Memory in use: of the GPU for cuda, otherwise of this process."""
    time: float = math.nan
    """When it was done, as time.time()."""
    temperature_c: float = math.nan
    """Degrees Celsius of the GPU or the processor; NaN without a sensor."""
    battery_percent: float = math.nan
    data_wait_share: float = math.nan
    """Fraction of the time of training steps, since the evaluation before, in which they waited for the text."""

    def to_json_line(self) -> str:
        """A line of metrics.jsonl, with its newline. JSON has no NaN: NaN and infinity become null."""
        row = {_KEY_IN_FILE.get(name, name): value for name, value in asdict(self).items()}
        return json.dumps({key: value if math.isfinite(value) else None for key, value in row.items()}) + "\n"

    @classmethod
    def from_json_line(cls, line: str) -> "Evaluated":
        """The inverse of `to_json_line`, null read as NaN; raises ValueError. Earlier versions wrote fewer fields."""
        row = json.loads(line)
        keys = {field.name: _KEY_IN_FILE.get(field.name, field.name) for field in fields(cls)}
        required = {keys[field.name] for field in fields(cls) if field.default is MISSING}
        if not isinstance(row, dict) or not required <= row.keys() <= set(keys.values()):
            raise ValueError("unexpected fields")
        found = {name: row.get(key) for name, key in keys.items()}
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in found.items()}
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values.values()):
            raise ValueError("a field is not a number")
        return cls(**values)


# Names in metrics.jsonl where they differ from the field's.
_KEY_IN_FILE = {"learning_rate": "lr"}


@dataclass(frozen=True)
class EpochDone:
    """An epoch's last evaluation."""

    epoch: int
    train_loss: float
    val_loss: float


@dataclass(frozen=True)
class Saved:
    """A model file is complete and on the disk."""

    path: Path
    is_best: bool
    val_loss: float


@dataclass(frozen=True)
class Checkpointed:
    """The checkpoint of `step` is on the disk and verified."""

    step: int
    path: Path


@dataclass(frozen=True)
class Warned:
    """A problem that the run has dealt with, in one line."""

    step: int
    text: str


@dataclass(frozen=True)
class RolledBack:
    """The run has returned to the checkpoint of `step`; everything after it no longer counts."""

    step: int
    history: list[Evaluated]
    """The evaluations that still count."""


@dataclass(frozen=True)
class Stopping:
    """A signal asked the run to stop; it evaluates, saves and ends."""

    signal_number: int


@dataclass(frozen=True)
class Finished:
    """The run is over, after its last step or because it was asked to stop."""

    best_path: Path
    best_epoch: int
    best_val_loss: float
    best_val_bits_per_byte: float
    scored_tokens: int
    """Validation tokens behind these two figures."""
    final_path: Path
    last_step: int
    elapsed_s: float
    eval_share: float
    """Fraction of the time spent on evaluations."""
    save_share: float
    """Fraction of the time spent on checkpoints and model files."""
    peak_memory_bytes: int
    stopped_by: int | None
    """The signal that ended the run early."""
    incidents: list[str]
    """All warnings since the run's first step."""
    best_step: int = 0
    left_s: float | None = None
    """Seconds left of a timed run's budget; below zero, its overrun."""
    known_before: float | None = None
    known_after: float | None = None
    """Bits per byte of the reference text (forgetting.py), of --start-from's model and of the best one; None where they
    were not measured."""

    @property
    def forgetting(self) -> str:
        """How much worse the best model has become on the reference text; "" where that was not measured."""
        return describe_forgetting(self.known_before or 0.0, self.known_after or 0.0)


def describe_forgetting(before: float, after: float) -> str:
    """ "6.5% worse on Python's manual, which it was not trained on: 1.310 bits per byte, before 1.230"

    "" where a figure is 0.
    """
    if not (before and after):
        return ""
    change = after / before - 1
    worse = f"{abs(change):.1%} {'worse' if change > 0 else 'better'}"
    return f"{worse} on {REFERENCE_TEXT}, which it was not trained on: {after:.3f} bits per byte, before {before:.3f}"


Event = (
    StageProgress
    | Notice
    | Measuring
    | Prepared
    | StageBegun
    | Merged
    | StepDone
    | ThroughputMeasured
    | Evaluated
    | EpochDone
    | Saved
    | Checkpointed
    | Warned
    | RolledBack
    | Stopping
    | Finished
)
