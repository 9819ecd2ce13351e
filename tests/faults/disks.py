"""Disks that are full, that fail at any one call or from it on, that turn read-only, or whose folder is gone."""

import contextlib
import errno
import functools
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.faults.calls import Call, visit_calls
from tests.faults.child import Child, Ended, before_steps
from tests.faults.damage import half_run
from tests.faults.trial import Group, Trial, times
from tests.faults.world import (
    KINDS,
    Faults,
    Twin,
    World,
    damaged_steps,
    differences,
    to_the_end,
    whole_steps,
)
from tiny_gpt.config import BEST_FILE
from tiny_gpt.run.checkpoint_store import CheckpointStore

SHORT_RUN = dict(epochs=2, iters_per_epoch=2, eval_interval=1)
ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)
N_SIZES = 20
PAGE = 4096
ROOMY = 64 << 20


# --- the k-th call fails ---


@dataclass(frozen=True)
class Failing:
    """The `number`-th call (from 0) that changes something fails, and all after it if it is `for_good`."""

    number: int
    errno: int
    for_good: bool

    def faults(self, folder: Path) -> Faults:
        n_calls = 0

        def visit(call: Call) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls - 1 == self.number or (self.for_good and n_calls > self.number):
                if n_calls - 1 == self.number:
                    print(f"({call} fails: {errno.errorcode[self.errno]})", file=sys.stderr, flush=True)
                call.half()
                raise OSError(self.errno, os.strerror(self.errno), call.what)

        return lambda _: visit_calls(folder, visit)


def a_call_fails(trial: Trial) -> list[str]:
    """A short run with a fault, then what a person does once it is mended."""
    failing: Failing = trial.case
    twin = trial.world.twin("overfitted", **SHORT_RUN)
    folder = trial.folder / "run"
    ended = Child(trial.world.command(twin.kind, folder, **twin.more), failing.faults(folder)).wait()
    trial.note(f"with the fault: {ended}")
    problems = after_a_fault(folder, ended)
    if ended.begun and not whole_steps(folder):
        problems.append("no checkpoint is left")
    # What failed to be deleted when nothing came after it is still there.
    return problems + to_the_end(trial.world, twin, folder, allows_leftovers=ended.code == 0)


@cache
def every_call(world: World) -> Sequence[Failing]:
    """Each of them once and for good, with the errors in turn."""
    twin = world.twin("overfitted", **SHORT_RUN)
    folder = world.folder / "calls"
    n_calls = count_calls(folder, world.command(twin.kind, folder, **twin.more))
    cases = [(number, for_good) for for_good in (False, True) for number in range(n_calls)]
    return [Failing(number, ERRORS[(number + for_good) % len(ERRORS)], for_good) for number, for_good in cases]


def a_call_fails_in_a_second_life(trial: Trial) -> list[str]:
    """A run that was killed goes on from its checkpoint, and makes its damaged best model anew, with a fault."""
    failing: Failing = trial.case
    twin = trial.world.twin("overfitted")
    folder = half_run_without_best(trial.world, trial.folder / "run")
    ended = Child(["resume", str(folder)], failing.faults(folder)).wait()
    trial.note(f"with the fault: {ended}")
    problems = after_a_fault(folder, ended)
    if not whole_steps(folder):
        problems.append("no checkpoint is left")
    return problems + to_the_end(trial.world, twin, folder, allows_leftovers=ended.code == 0)


@cache
def every_call_of_a_second_life(world: World) -> Sequence[Failing]:
    """Those until the first new checkpoint is made, once and for good, with the errors in turn."""
    folder = half_run_without_best(world, world.folder / "calls-of-a-second-life")
    n_calls = count_calls(folder, ["resume", str(folder)], until_step=24)
    cases = [(number, for_good) for for_good in (False, True) for number in range(n_calls)]
    return [Failing(number, ERRORS[(number + for_good) % len(ERRORS)], for_good) for number, for_good in cases]


def half_run_without_best(world: World, folder: Path) -> Path:
    shutil.copytree(half_run(world, "overfitted", "killed"), folder)
    with open(folder / BEST_FILE, "r+b") as file:
        file.truncate(1000)
    return folder


def count_calls(folder: Path, args: Sequence[str], until_step: float = math.inf) -> int:
    """How many calls a run makes that change something, up to the beginning of a step."""
    counted = folder.parent / "n_calls"
    counted.unlink(missing_ok=True)

    def faults(child: Child) -> None:
        file = open(counted, "ab", buffering=0)  # noqa: SIM115

        def visit(_: Call) -> None:
            if child.begun < until_step:
                file.write(b".")

        visit_calls(folder, visit)

    ended = Child(args, faults).wait()
    assert ended.code == 0, ended
    return counted.stat().st_size


def after_a_fault(folder: Path, ended: Ended) -> list[str]:
    """It went on to the end, or ended with words; what bears a checkpoint's name is whole."""
    problems = damaged_steps(folder)
    if ended.hung or ended.code not in (0, 5):
        problems.append(f"it should have gone on or ended with 5: {ended}")
    if "Traceback" in ended.err or "bug in tiny_gpt" in ended.err or (ended.code and not ended.has_words()):
        problems.append(f"its words are none for a person: {ended}")
    return problems


# --- a disk without room ---


@dataclass(frozen=True)
class Disk:
    """A disk of a certain size at `folder`."""

    folder: Path
    faults: Faults | None
    """For a training on it; None where the system itself keeps the size."""
    grow: Callable[[], object]


@contextlib.contextmanager
def small_disk(place: Path, n_bytes: int) -> Iterator[Disk]:
    """A tmpfs where the system lets us mount one, else a folder in whose files writes find so much room."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(place)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            grow = functools.partial(
                subprocess.run, ["mount", "-o", f"remount,size={ROOMY}", str(place)], check=True, capture_output=True
            )
            yield Disk(place, None, grow)
        finally:
            subprocess.run(["umount", str(place)], check=True)
    else:
        yield Disk(place, quota(place, n_bytes), lambda: None)


def quota(folder: Path, n_bytes: int) -> Faults:
    """Writes find room for so much in all files of `folder`."""

    def visit(call: Call) -> None:
        used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if call.kind == "write" and used + len(call.data) > n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), call.what)

    return lambda _: visit_calls(folder, visit)


def full_disk(trial: Trial) -> list[str]:
    """A run on a disk too small for it, then with enough room."""
    kind, number = trial.case
    twin = trial.world.twin(kind)
    all_sizes, enough = sizes(twin)
    n_bytes = all_sizes[number]
    with small_disk(trial.folder / "disk", n_bytes) as disk:
        folder = disk.folder / "run"
        ended = Child(trial.world.command(kind, folder), disk.faults).wait()
        trial.note(f"{n_bytes:,} bytes, where it kept the checkpoints {whole_steps(folder)}: {ended}")
        problems = after_a_fault(folder, ended)
        if ended.begun and not whole_steps(folder):
            problems.append("no checkpoint is left")
        if n_bytes >= enough and ended.code != 0:
            problems.append("the room was enough")
        disk.grow()
        return problems + to_the_end(trial.world, twin, folder)


def sizes(twin: Twin) -> tuple[list[int], int]:
    """From just below one checkpoint to three with both model files, in N_SIZES equal steps; and what is enough.

    Enough is room for a checkpoint and a model file beside the newest checkpoint and both model files.
    """
    checkpoint = size_of(CheckpointStore(twin.folder).verified(twin.result.step).path)
    models = sum(size_of(path) for path in twin.folder.glob("*.pt"))
    low, high = checkpoint - PAGE, 3 * checkpoint + models
    found = [int(low + (high - low) * number / (N_SIZES - 1)) // PAGE * PAGE for number in range(N_SIZES)]
    return found, 2 * checkpoint + 3 * models // 2 + 16 * PAGE


def size_of(path: Path) -> int:
    """In whole pages, as tmpfs counts."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files)


# --- a disk that changes under the run ---


def read_only_for_a_while(trial: Trial) -> list[str]:
    """As an external drive with a loose cable; nothing of it may be seen in the end, if the end is not in it."""
    twin = trial.world.twin(trial.rng.choice([*KINDS]))
    first = trial.rng.randint(2, twin.result.step - 8)
    last = first + trial.rng.randint(0, 6)
    folder = trial.folder / "run"

    def faults(child: Child) -> None:
        def visit(call: Call) -> None:
            if first <= child.done <= last:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), call.what)

        visit_calls(folder, visit)

    ended = Child(trial.world.command(twin.kind, folder), faults).wait()
    trial.note(f"{twin.kind}, read-only from the end of step {first} to that of {last}: {ended}")
    problems = after_a_fault(folder, ended) + ([] if ended.code == 0 else ["it did not go on"])
    return problems + to_the_end(trial.world, twin, folder)


def file_size_limit(trial: Trial) -> list[str]:
    """`ulimit -f`, from less than a manifest to more than the moments."""
    twin = trial.world.twin(trial.rng.choice([*KINDS]))
    largest = max(path.stat().st_size for path in twin.folder.rglob("*") if path.is_file())
    limit = trial.rng.randint(100, int(1.1 * largest))
    folder = trial.folder / "run"
    faults: Faults = lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))  # noqa: E731
    ended = Child(trial.world.command(twin.kind, folder), faults).wait()
    trial.note(f"{twin.kind}, files of {limit:,} bytes: {ended}")
    return after_a_fault(folder, ended) + to_the_end(trial.world, twin, folder)


def removed(trial: Trial) -> list[str]:
    """Somebody deletes the run's folder while it trains: from there on all is saved again."""
    twin = trial.world.twin(trial.rng.choice([*KINDS]))
    step = trial.rng.randint(1, twin.result.step)
    folder = trial.folder / "run"
    faults: Faults = lambda _: before_steps(lambda begun: begun == step and shutil.rmtree(folder))  # noqa: E731
    ended = Child(trial.world.command(twin.kind, folder), faults).wait()
    trial.note(f"{twin.kind}, removed before step {step}: {ended}")
    problems = after_a_fault(folder, ended)
    if ended.code != 0:
        return [*problems, "it did not go on"]
    if not (folder / BEST_FILE).exists():  # no better one has come since
        shutil.copy(twin.folder / BEST_FILE, folder)
    names = {"best_weights", "best_val_loss"}
    return problems + [line for line in differences(folder, twin) if line.split()[0] not in names]


TOLD = "exit 0, or 5 with words; what was saved stays whole; after mending, the end equal to the twin's"
GROUPS = {
    "every-call-fails": Group(TOLD, a_call_fails, every_call, 3),
    "every-call-fails-in-second-lives": Group(TOLD, a_call_fails_in_a_second_life, every_call_of_a_second_life, 2),
    "full-disk": Group(
        TOLD, full_disk, lambda _: [(kind, n) for kind in ("gpt2", "overfitted") for n in range(N_SIZES)], 2
    ),
    "read-only-for-a-while": Group("exit 0, the end equal to the twin's", read_only_for_a_while, times(20), 1),
    "file-size-limit": Group(TOLD, file_size_limit, times(20), 1),
    "folder-removed": Group("exit 0, all that came later saved as the twin's", removed, times(20), 1),
}
