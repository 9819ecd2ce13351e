"""The progress of preparing a text: its stages are generators that yield events and return their result.

    def read(path) -> Preparation[str]:
        yield StageProgress("reading", 0, 100)
        return "text"

    text = yield from read(path)    in another stage: its events are passed on
    text = finish(read(path))       anywhere else; ui/preparation.py has a driver that shows them

Generators, not callbacks: a run yields the events of its preparation and of its training as one stream, which
everything that shows or records a run consumes.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar, cast

Result = TypeVar("Result")


@dataclass(frozen=True)
class StageProgress:
    """How far one stage is, such as "reading" or "downloading text8"."""

    stage: str
    done_bytes: int
    total_bytes: int | None
    """None if it is unknown."""


@dataclass(frozen=True)
class Notice:
    """One line that the user should see."""

    text: str


@dataclass(frozen=True)
class Measuring:
    """What is measured before a plan is made, such as "speed of training steps", and how much of all that is done."""

    what: str
    fraction: float


PreparationEvent = StageProgress | Notice | Measuring
Preparation = Generator[PreparationEvent, None, Result]


def finish(stages: Preparation[Result]) -> Result:
    """Run `stages` to the end, ignoring their events, and return the result."""
    while True:
        try:
            next(stages)
        except StopIteration as stop:
            return cast(Result, stop.value)
