"""The plain values that planning passes on: facts about a text, the chosen backend, the forecast and the plan.

Nothing here imports torch, so that events and reports can use a Plan without importing the planner.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tiny_gpt.duration import format_milliseconds

# The distance of other text where it was not measured: that of documentation from plays of Shakespeare.
FAR = 1.3


@dataclass(frozen=True)
class TextStats:
    """What is known about a text before a model is trained on it."""

    train_bytes: int
    train_tokens: int
    val_tokens: int
    vocab_size: int
    pilot_bits_per_byte: float
    """Validation loss of the pilot run: how hard this text is to predict. For a run that starts from a trained model,
    the validation loss of that model as it comes."""
    is_estimated: bool = False
    """Whether there was no time for the pilot run, so that a compressor's result replaces it."""
    english_share: float = 1.0
    """The fraction of its words that Python's manual has too: about 0.6 for English, below 0.3 for other languages."""
    other_tokens: int = 0
    """Tokens of other text that a run on this one reads first."""
    other_distance: float = FAR
    """How unlike the other text is: 1 for text of the same kind (pilot_run.distance_steps)."""
    alone_tokens: int = 0
    """Training tokens with the tokenizer of this text alone, if `train_tokens` are those of a tokenizer for both."""


@dataclass(frozen=True)
class OtherText:
    """Other text that a run begins with, and the sizes of the person's own text in the tokens of both."""

    sources: tuple[str, ...]
    train_tokens: int
    val_tokens: int
    vocab_size: int
    other_tokens: int
    distance: float = FAR
    """As TextStats.other_distance."""

    def stats_of(self, own: TextStats) -> TextStats:
        """`own` in these tokens, with the other text."""
        return replace(
            own,
            alone_tokens=own.train_tokens,
            train_tokens=self.train_tokens,
            val_tokens=self.val_tokens,
            vocab_size=self.vocab_size,
            other_tokens=self.other_tokens,
            other_distance=self.distance,
        )


@dataclass(frozen=True)
class Candidate:
    """A way to compute a training step: a backend in a precision."""

    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True)
class BackendChoice:
    """The chosen candidate and the measurements behind it."""

    candidate: Candidate
    seconds: dict[str, float] = field(default_factory=dict)
    """Fastest measured pass by candidate name; empty where there was nothing to choose from."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a candidate could not run, by candidate name."""

    @property
    def notes(self) -> list[str]:
        """One line for each candidate that failed."""
        return [f"{name} cannot be used here: {reason}" for name, reason in self.failures.items()]

    def __str__(self) -> str:
        if len(self.seconds) < 2:
            return f"using {self.candidate}: the settings allow no other backend"
        return f"backends measured: {self.figures}; using {self.candidate} (--backend and --precision override)"

    @property
    def figures(self) -> str:
        """fused bf16 41 ms, eager bf16 66 ms"""
        return ", ".join(f"{name} {format_milliseconds(seconds)}" for name, seconds in self.seconds.items())


@dataclass(frozen=True)
class Forecast:
    """Predicted validation loss in bits per byte, with an 80% prediction interval from `low` to `high`."""

    bits_per_byte: float
    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """What a training run will be and how good its model is expected to become."""

    n_parameters: int
    steps: int
    step_s: float
    """Seconds per step, as measured."""
    tokens: int
    """Tokens processed by the whole run."""
    data_epochs: float
    """Passes over the training text; of each model, where several are pretrained."""
    seconds: float
    """Duration from the first step to the end of the run."""
    memory_bytes: int
    forecast: Forecast
    saturation_s: float
    """Training time after which more time hardly improves a model of this text."""
    teachers: int = 0
    """Models that are trained first, which the final one learns from."""
    students: int = 1
    """Models that learn from them."""
    merged: int = 0
    """How many of all these, or of the pretrained ones, become one model, at least; not if fewer than 2."""
    first: tuple[str, ...] = ()
    """The other text that the run begins with."""
    first_share: float = 0.0
    """The fraction of the run for it."""
    pretrainings: int = 0
    """Models that are trained on it, one after the other."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        """The inverse of `to_dict`; also reads files of earlier versions. Raises ValueError, TypeError or KeyError."""
        current = {_RENAMED.get(name, name): value for name, value in values.items()}
        forecast = {_RENAMED.get(name, name): value for name, value in current["forecast"].items()}
        return cls(**current | {"forecast": Forecast(**forecast), "first": tuple(current.get("first", ()))})


# Names in the plan.json of earlier versions.
_RENAMED = {
    "readings": "data_epochs",
    "expected": "forecast",
    "middle": "bits_per_byte",
    "useful_s": "saturation_s",
}
