"""The progress of preparing a text: the events that its stages yield."""

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


PreparationEvent = StageProgress | Notice


def finish(stages: Generator[PreparationEvent, None, Result]) -> Result:
    """Run `stages` to the end, ignoring the events, and return its result."""
    while True:
        try:
            next(stages)
        except StopIteration as stop:
            return cast(Result, stop.value)
