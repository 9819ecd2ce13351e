"""What a plan says, as plain data: whoever shows or stores a plan needs this file only, and none of the measuring."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Forecast:
    """Bits per byte of the validation text; eight of ten runs end between `low` and `high`."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """What a training run will be."""

    n_parameters: int
    steps: int
    step_s: float
    """Measured seconds per step."""
    tokens: int
    readings: float
    """Epochs over the text."""
    seconds: float
    """From the first step to the end of the run."""
    memory_bytes: int
    expected: Forecast
    useful_s: float
    """Beyond this many seconds, more time hardly helps with this text."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        """The inverse of `to_dict`; raises ValueError, TypeError or KeyError."""
        return cls(**values | {"expected": Forecast(**values["expected"])})
