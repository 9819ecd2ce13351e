"""What a run's folder holds beside its metrics. Any file may be missing, damaged, huge or malicious."""

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_gpt.config import (
    CONFIG_FILE,
    LOG_FILE,
    SAMPLE_INDEX_FILE,
    SAMPLES_FOLDER,
    sample_file,
)
from tiny_gpt.errors import BadInputError
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError, read_bounded

MAX_FILE_BYTES = 4 << 20
MAX_SAMPLE_BYTES = 1 << 16
MAX_SAMPLES = 100
MAX_LOG_BYTES = 2 << 20
MAX_EVENTS = 300
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, DamagedError, RecursionError, ArithmeticError)
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  (.*)")
_WARNING = re.compile(r"step ([\d,]{1,20}): (.+)")
_RESUMED = re.compile(r"resumed +after step ([\d,]{1,20}).*")
_STOP = re.compile(r"(Ctrl\+C|SIG\w+): step finished; .*")


@dataclass(frozen=True)
class Sample:
    """What the best model of a step wrote."""

    step: int
    text: str
    time: float = math.nan
    elapsed_s: float = math.nan
    bits_per_byte: float = math.nan
    seconds: float = 0.0
    """How long it took to generate."""


@dataclass(frozen=True)
class RunEvent:
    """Something that happened in a run, from its log."""

    time: float
    step: int | None
    text: str
    kind: str
    """skip, rollback, pause, resume, stop, stage or note."""


@dataclass(frozen=True)
class CheckpointNote:
    """What the newest checkpoint says of itself."""

    step: int
    time: float
    data: dict[str, Any]
    """The hashes of text and tokenizer, and the name of the token store."""
    machine: dict[str, Any]


def read_json_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none."""
    try:
        values = json.loads(read_bounded(path, MAX_FILE_BYTES))
    except _UNREADABLE:
        return {}
    return values if isinstance(values, dict) else {}


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in config.json, flat."""
    return read_json_file(folder / CONFIG_FILE)


def read_checkpoint(folder: Path) -> CheckpointNote | None:
    """The newest checkpoint's note; its files are not read."""
    store = CheckpointStore(folder)
    for step in store.steps():
        with contextlib.suppress(*_UNREADABLE, BadInputError):
            about = store.about(step)
            data, machine = about.get("data"), about.get("machine")
            written_at = (store.folder / f"step-{step:08}").stat().st_mtime
            return CheckpointNote(
                step, written_at, data if isinstance(data, dict) else {}, machine if isinstance(machine, dict) else {}
            )
    return None


def read_samples(folder: Path) -> list[Sample]:
    """The samples in the order of their steps, at most MAX_SAMPLES, evenly chosen."""
    samples = folder / SAMPLES_FOLDER
    found: dict[int, Sample] = {}
    for line in _lines_of(samples / SAMPLE_INDEX_FILE, MAX_FILE_BYTES):
        with contextlib.suppress(*_UNREADABLE):
            row = json.loads(line)
            step = row["step"]
            if type(step) is int and 0 <= step < 10**15:
                found[step] = Sample(
                    step,
                    "",
                    *(_number(row.get(name)) for name in ("time", "elapsed_s", "val_bits_per_byte", "seconds")),
                )
    ordered = [found[step] for step in sorted(found)]
    if len(ordered) > MAX_SAMPLES:
        chosen = {round(i * (len(ordered) - 1) / (MAX_SAMPLES - 1)) for i in range(MAX_SAMPLES)}
        ordered = [ordered[i] for i in sorted(chosen)]
    return list(_with_texts(samples, ordered))


def _with_texts(folder: Path, samples: list[Sample]) -> Iterator[Sample]:
    for sample in samples:
        with contextlib.suppress(*_UNREADABLE):
            text = read_bounded(folder / sample_file(sample.step), MAX_SAMPLE_BYTES).decode("utf-8", "replace")
            yield Sample(
                sample.step,
                text.removesuffix("\n"),
                sample.time,
                sample.elapsed_s,
                sample.bits_per_byte,
                sample.seconds,
            )


def read_events(folder: Path) -> list[RunEvent]:
    """The events in train.log, the newest MAX_EVENTS, in order."""
    events: list[RunEvent] = []
    for line in _lines_of(folder / LOG_FILE, MAX_LOG_BYTES):
        stamped = _LOG_LINE.fullmatch(line.rstrip("\n"))
        if stamped is None:
            continue
        text = stamped[2]
        warning, resumed, stop = _WARNING.fullmatch(text), _RESUMED.fullmatch(text), _STOP.fullmatch(text)
        try:
            at = time.mktime(time.strptime(stamped[1], "%Y-%m-%d %H:%M:%S"))
            if warning:
                events.append(RunEvent(at, _int(warning[1]), warning[2][:500], _kind_of(warning[2])))
            elif resumed:
                events.append(RunEvent(at, _int(resumed[1]), f"resumed after step {resumed[1]}", "resume"))
            elif stop:
                events.append(RunEvent(at, None, f"asked to stop by {stop[1]}", "stop"))
        except (ValueError, OverflowError):
            continue
    return events[-MAX_EVENTS:]


def _kind_of(text: str) -> str:
    kinds = {"skipped": "skip", "paused": "pause", "training continues": "resume", "restarted": "restart"}
    # The descriptions of run/stages.py.
    kinds |= dict.fromkeys(("pretraining", "teacher ", "student", "your text"), "stage")
    if "rolled back" in text:
        return "rollback"
    return next((kind for start, kind in kinds.items() if text.startswith(start)), "note")


def _lines_of(path: Path, max_bytes: int) -> list[str]:
    """The lines in the last `max_bytes` of a regular file; [] if there is none."""
    try:
        if path.is_symlink() or not path.is_file():
            return []
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            lines = file.read(max_bytes).decode("utf-8", "replace").splitlines()
        return lines[1:] if size > max_bytes else lines  # the first one is cut
    except OSError:
        return []


def _int(digits: str) -> int:
    return int(digits.replace(",", ""))


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e18 else math.nan
