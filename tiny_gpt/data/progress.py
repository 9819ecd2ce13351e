"""How far the preparation of a text has come: what its stages yield, and how to run one to its end in silence."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar, cast

Result = TypeVar("Result")


@dataclass(frozen=True)
class StageProgress:
    """One stage, such as "reading" or "downloading text8", and the bytes of it that are done."""

    stage: str
    done_bytes: int
    total_bytes: int | None
    """None where it is not known."""


@dataclass(frozen=True)
class Notice:
    """Something that a person should know about their text, in one line."""

    text: str


PreparationEvent = StageProgress | Notice


def finish(stages: Generator[PreparationEvent, None, Result]) -> Result:
    """The result of `stages`, whatever they tell on the way."""
    while True:
        try:
            next(stages)
        except StopIteration as stop:
            return cast(Result, stop.value)
