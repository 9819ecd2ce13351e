"""Power cuts: unflushed data may be lost in any order. What the run reports as saved must survive.

A run's calls are recorded and played again on a disk made of dictionaries, which knows of each file and folder what it
holds and what of that was flushed. Assumed is what POSIX promises, and one thing more, which ext4, XFS, Btrfs and APFS
all do: once something in a new folder is flushed, the folder itself is not lost. After Pillai et al., "All File Systems
Are Not Created Equal" (OSDI 2014).
"""

import contextlib
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.faults.calls import Call, visit_calls
from tests.faults.child import Child
from tests.faults.disks import SHORT_RUN
from tests.faults.trial import Group, Trial, times
from tests.faults.world import World, resume_and_compare, valid_steps
from tiny_gpt.config import BEST_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.run import model_files
from tiny_gpt.run.checkpoint_store import CheckpointStore

KIND = "overfitted"
STRIDE_SHORT = 41


class Event(NamedTuple):
    """A call, or a report that a `checkpoint` or `best` model of a step is saved."""

    kind: str
    path: str = ""
    target: str = ""
    data: bytes = b""
    is_first: bool = False
    step: int = 0


@dataclass
class File:
    """Current content, and the content guaranteed after a power cut."""

    now: bytes = b""
    flushed: bytes = b""


@dataclass
class Folder:
    now: dict[str, "File | Folder"] = field(default_factory=dict)
    flushed: dict[str, "File | Folder"] = field(default_factory=dict)


class Disk:
    """Files below a folder, as they are and as flushed."""

    def __init__(self) -> None:
        self.root = Folder()

    def apply(self, event: Event) -> None:
        """Apply a call, which may fail."""
        with contextlib.suppress(KeyError):
            folder, name = self._place(event.path)
            match event.kind:
                case "mkdir":
                    folder.now.setdefault(name, Folder())
                case "open":
                    file = folder.now.setdefault(name, File())
                    file.now = b"" if event.is_first else file.now
                case "write":
                    folder.now[name].now += event.data
                case "rename":
                    target, new_name = self._place(event.target)
                    target.now[new_name] = folder.now.pop(name)
                case "unlink":
                    del folder.now[name]
                case "rmdir" if not folder.now[name].now:
                    del folder.now[name]
                case "fsync":
                    self._flush(event.path)

    def _place(self, path: str) -> tuple[Folder, str]:
        *parents, name = path.split("/")
        folder: Any = self.root
        for parent in parents:
            folder = folder.now[parent]
        return folder, name

    def _flush(self, path: str) -> None:
        folder = self.root
        for name in path.split("/"):
            inner = folder.now[name]
            if isinstance(inner, Folder):
                folder.flushed.setdefault(name, inner)
                folder = inner
            else:
                inner.flushed = inner.now
                return
        folder.flushed = dict(folder.now)


def nothing_more(now: Any, flushed: Any) -> Any:
    """Keep only what was flushed."""
    return flushed


def names_first(now: Any, flushed: Any) -> Any:
    """Keep all names but only flushed contents, as with delayed allocation."""
    return now if isinstance(now, dict) else flushed


def any_part(rng: random.Random) -> Callable[[Any, Any], Any]:
    """For each folder and file, either state; perhaps only the start of a content."""

    def choose(now: Any, flushed: Any) -> Any:
        if isinstance(now, bytes) and now.startswith(flushed):
            return now[: rng.choice((len(flushed), len(now), rng.randint(len(flushed), len(now))))]
        return rng.choice((now, flushed))

    return choose


def after_the_cut(folder: Folder, place: Path, choose: Callable[[Any, Any], Any]) -> None:
    """Write to `place` what the disk may hold now."""
    place.mkdir()
    for name, inner in choose(folder.now, folder.flushed).items():
        if isinstance(inner, Folder):
            after_the_cut(inner, place / name, choose)
        else:
            (place / name).write_bytes(choose(inner.now, inner.flushed))


@cache
def recorded(world: World) -> list[Event]:
    """The calls of a short run."""
    place = world.folder / "recorded"
    place.mkdir()
    log = world.folder / "recorded.log"

    def faults(child: Child) -> None:
        file = open(log, "ab", buffering=0)  # noqa: SIM115
        save_model, write = model_files.save_model, CheckpointStore.write

        def note(event: Event) -> None:
            file.write(pickle.dumps(event))

        def visit(call: Call) -> None:
            data = call.data.encode() if isinstance(call.data, str) else bytes(call.data)
            note(Event(call.kind, call.path, call.target, data, call.is_first))

        def writing(store: CheckpointStore, step: int, *args: Any) -> Any:
            written = write(store, step, *args)
            note(Event("checkpoint", step=step))
            return written

        def saving(path: Path, *args: Any) -> None:
            save_model(path, *args)
            progress = args[-1]
            assert isinstance(progress, Progress)
            if path.name == BEST_FILE:
                note(Event("best", step=progress.step))

        model_files.save_model, CheckpointStore.write = saving, writing  # type: ignore[assignment]
        visit_calls(place, visit)

    ended = Child(world.command(KIND, place / "run", **SHORT_RUN), faults).wait()
    assert ended.code == 0, ended
    return list(unpickled(log))


def unpickled(path: Path) -> Iterator[Event]:
    with open(path, "rb") as file:
        while file.peek(1):
            yield pickle.load(file)  # our own, of a moment ago


def at_every_call(trial: Trial) -> list[str]:
    """Whatever survives, everything reported as saved is there."""
    name, events = trial.case, recorded(trial.world)
    stride = STRIDE_SHORT if trial.is_short else 1
    disk, problems, trial.n_checks, checkpoint, best = Disk(), list[str](), 0, -1, -1
    for number, event in enumerate(events):
        if event.kind == "checkpoint":
            checkpoint = event.step
        elif event.kind == "best":
            best = event.step
        else:
            disk.apply(event)
        if number % stride == 0:
            trial.n_checks += 1
            place = trial.folder / "disk"
            shutil.rmtree(place, ignore_errors=True)
            after_the_cut(disk.root, place, WAYS[name](trial.rng))
            what = f"after call {number}, {event.kind} {event.path}"
            problems += [f"{what}: {problem}" for problem in lost(place / "run", checkpoint, best)]
    return problems


def lost(folder: Path, checkpoint: int, best: int) -> list[str]:
    """What was reported as saved and is missing."""
    whole = valid_steps(folder)
    problems = (
        [] if checkpoint < 0 or checkpoint <= max(whole, default=-1) else [f"the checkpoint of step {checkpoint}"]
    )
    if best >= 0:
        try:
            found = load_model(folder / BEST_FILE, torch.device("cpu")).progress.step
            problems += [] if found >= best else [f"the best model, of step {best}"]
        except BadInputError as failure:
            problems.append(f"the best model, of step {best} ({failure})")
    return problems


def and_on(trial: Trial) -> list[str]:
    """Power is cut at a random call, then the run resumes."""
    events, rng = recorded(trial.world), trial.rng
    n, name = rng.randrange(1, len(events)), rng.choice([*WAYS])
    disk = Disk()
    for event in events[:n]:
        if event.kind not in ("checkpoint", "best"):
            disk.apply(event)
    after_the_cut(disk.root, trial.folder / "disk", WAYS[name](rng))
    trial.note(f"{name}, after {events[n - 1].kind} {events[n - 1].path}")
    return resume_and_compare(trial.world, trial.world.reference(KIND, **SHORT_RUN), trial.folder / "disk" / "run")


WAYS: dict[str, Callable[[random.Random], Callable[[Any, Any], Any]]] = {
    "nothing more": lambda _: nothing_more,
    "names first": lambda _: names_first,
    "any part": any_part,
}
GROUPS = {
    "power-cuts": Group("everything reported as saved is there and valid", at_every_call, lambda _: [*WAYS], len(WAYS)),
    "power-cuts-and-on": Group("result equal to the reference run's", and_on, times(100), 2),
}
