"""Disks that are full, fail at one call or from one call on, turn read-only, or lose the run's folder."""

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
    ReferenceRun,
    World,
    damaged_steps,
    differences,
    resume_and_compare,
    valid_steps,
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
    """The `number`-th call (from 0) that changes something fails, and all after it if it is `permanent`."""

    number: int
    errno: int
    permanent: bool

    def faults(self, folder: Path) -> Faults:
        n_calls = 0

        def visit(call: Call) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls - 1 == self.number or (self.permanent and n_calls > self.number):
                if n_calls - 1 == self.number:
                    print(f"({call} fails: {errno.errorcode[self.errno]})", file=sys.stderr, flush=True)
                call.half()
                raise OSError(self.errno, os.strerror(self.errno), call.what)

        return lambda _: visit_calls(folder, visit)


def call_fails(trial: Trial) -> list[str]:
    """A short run with a fault, then a resume after the fault is fixed."""
    failing: Failing = trial.case
    reference = trial.world.reference("overfitted", **SHORT_RUN)
    folder = trial.folder / "run"
    ended = Child(trial.world.command(reference.kind, folder, **reference.more), failing.faults(folder)).wait()
    trial.note(f"with the fault: {ended}")
    problems = after_a_fault(folder, ended)
    if ended.begun and not valid_steps(folder):
        problems.append("no checkpoint is left")
    # A file whose deletion failed last is still there.
    return problems + resume_and_compare(trial.world, reference, folder, allows_leftovers=ended.code == 0)


@cache
def every_call(world: World) -> Sequence[Failing]:
    """Each call, failing once and permanently, cycling through the errors."""
    reference = world.reference("overfitted", **SHORT_RUN)
    folder = world.folder / "calls"
    n_calls = count_calls(folder, world.command(reference.kind, folder, **reference.more))
    cases = [(number, permanent) for permanent in (False, True) for number in range(n_calls)]
    return [Failing(number, ERRORS[(number + permanent) % len(ERRORS)], permanent) for number, permanent in cases]


def call_fails_after_resume(trial: Trial) -> list[str]:
    """A killed run resumes and rewrites its damaged best model, with a fault meanwhile."""
    failing: Failing = trial.case
    reference = trial.world.reference("overfitted")
    folder = half_run_without_best(trial.world, trial.folder / "run")
    ended = Child(["resume", str(folder)], failing.faults(folder)).wait()
    trial.note(f"with the fault: {ended}")
    problems = after_a_fault(folder, ended)
    if not valid_steps(folder):
        problems.append("no checkpoint is left")
    return problems + resume_and_compare(trial.world, reference, folder, allows_leftovers=ended.code == 0)


@cache
def every_call_after_resume(world: World) -> Sequence[Failing]:
    """Each call up to the first new checkpoint, failing once and permanently, cycling through the errors."""
    folder = half_run_without_best(world, world.folder / "calls-after-resume")
    n_calls = count_calls(folder, ["resume", str(folder)], until_step=24)
    cases = [(number, permanent) for permanent in (False, True) for number in range(n_calls)]
    return [Failing(number, ERRORS[(number + permanent) % len(ERRORS)], permanent) for number, permanent in cases]


def half_run_without_best(world: World, folder: Path) -> Path:
    shutil.copytree(half_run(world, "overfitted", "killed"), folder)
    with open(folder / BEST_FILE, "r+b") as file:
        file.truncate(1000)
    return folder


def count_calls(folder: Path, args: Sequence[str], until_step: float = math.inf) -> int:
    """Number of modifying calls that a run makes before a step starts."""
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
    """It finished or failed with a message, and every file named as a checkpoint is valid."""
    problems = damaged_steps(folder)
    if ended.hung or ended.code not in (0, 5):
        problems.append(f"it should have gone on or ended with 5: {ended}")
    if "Traceback" in ended.err or "bug in tiny_gpt" in ended.err or (ended.code and not ended.has_words()):
        problems.append(f"it failed without a clear message: {ended}")
    return problems


# --- a disk without room ---


@dataclass(frozen=True)
class Disk:
    """A disk of limited size at `folder`."""

    folder: Path
    faults: Faults | None
    """Enforces the limit in a training; None if the file system does."""
    grow: Callable[[], object]


@contextlib.contextmanager
def small_disk(place: Path, n_bytes: int) -> Iterator[Disk]:
    """A tmpfs if we may mount one, else a folder whose writes fail beyond the limit."""
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
    """Limit the total size of all files in `folder`."""

    def visit(call: Call) -> None:
        used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if call.kind == "write" and used + len(call.data) > n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), call.what)

    return lambda _: visit_calls(folder, visit)


def full_disk(trial: Trial) -> list[str]:
    """A run on a disk that is too small, then on one that is large enough."""
    kind, number = trial.case
    reference = trial.world.reference(kind)
    all_sizes, enough = sizes(reference)
    n_bytes = all_sizes[number]
    with small_disk(trial.folder / "disk", n_bytes) as disk:
        folder = disk.folder / "run"
        ended = Child(trial.world.command(kind, folder), disk.faults).wait()
        trial.note(f"{n_bytes:,} bytes, where it kept the checkpoints {valid_steps(folder)}: {ended}")
        problems = after_a_fault(folder, ended)
        if ended.begun and not valid_steps(folder):
            problems.append("no checkpoint is left")
        if n_bytes >= enough and ended.code != 0:
            problems.append("the room was enough")
        disk.grow()
        return problems + resume_and_compare(trial.world, reference, folder)


def sizes(reference: ReferenceRun) -> tuple[list[int], int]:
    """Sizes from just below one checkpoint to three plus both model files, in equal steps; and one that suffices.

    Enough is room for a checkpoint and a model file beside the newest checkpoint and both model files.
    """
    checkpoint = size_of(CheckpointStore(reference.folder).verified(reference.result.step).path)
    models = sum(size_of(path) for path in reference.folder.glob("*.pt"))
    low, high = checkpoint - PAGE, 3 * checkpoint + models
    found = [int(low + (high - low) * number / (N_SIZES - 1)) // PAGE * PAGE for number in range(N_SIZES)]
    return found, 2 * checkpoint + 3 * models // 2 + 16 * PAGE


def size_of(path: Path) -> int:
    """Rounded to pages, as tmpfs counts."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files)


# --- a disk that changes under the run ---


def temporarily_read_only(trial: Trial) -> list[str]:
    """Like an external drive with a loose cable; the final result must not show it unless it lasts to the end."""
    reference = trial.world.reference(trial.rng.choice([*KINDS]))
    first = trial.rng.randint(2, reference.result.step - 8)
    last = first + trial.rng.randint(0, 6)
    folder = trial.folder / "run"

    def faults(child: Child) -> None:
        def visit(call: Call) -> None:
            if first <= child.done <= last:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), call.what)

        visit_calls(folder, visit)

    ended = Child(trial.world.command(reference.kind, folder), faults).wait()
    trial.note(f"{reference.kind}, read-only from the end of step {first} to that of {last}: {ended}")
    problems = after_a_fault(folder, ended) + ([] if ended.code == 0 else ["it did not go on"])
    return problems + resume_and_compare(trial.world, reference, folder)


def file_size_limit(trial: Trial) -> list[str]:
    """`ulimit -f`, from less than a manifest to more than the optimizer file."""
    reference = trial.world.reference(trial.rng.choice([*KINDS]))
    largest = max(path.stat().st_size for path in reference.folder.rglob("*") if path.is_file())
    limit = trial.rng.randint(100, int(1.1 * largest))
    folder = trial.folder / "run"
    faults: Faults = lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))  # noqa: E731
    ended = Child(trial.world.command(reference.kind, folder), faults).wait()
    trial.note(f"{reference.kind}, files of {limit:,} bytes: {ended}")
    return after_a_fault(folder, ended) + resume_and_compare(trial.world, reference, folder)


def removed(trial: Trial) -> list[str]:
    """The run's folder is deleted while it trains: everything is saved again from then on."""
    reference = trial.world.reference(trial.rng.choice([*KINDS]))
    step = trial.rng.randint(1, reference.result.step)
    folder = trial.folder / "run"
    faults: Faults = lambda _: before_steps(lambda begun: begun == step and shutil.rmtree(folder))  # noqa: E731
    ended = Child(trial.world.command(reference.kind, folder), faults).wait()
    trial.note(f"{reference.kind}, removed before step {step}: {ended}")
    problems = after_a_fault(folder, ended)
    if ended.code != 0:
        return [*problems, "it did not go on"]
    if not (folder / BEST_FILE).exists():  # no better one has come since
        shutil.copy(reference.folder / BEST_FILE, folder)
    names = {"best_weights", "best_val_loss"}
    return problems + [line for line in differences(folder, reference) if line.split()[0] not in names]


CLEAN_FAILURE = "exit 0, or 5 with a message; saved files stay valid; then result equal to the reference run's"
GROUPS = {
    "every-call-fails": Group(CLEAN_FAILURE, call_fails, every_call, 3),
    "every-call-fails-after-resume": Group(CLEAN_FAILURE, call_fails_after_resume, every_call_after_resume, 2),
    "full-disk": Group(
        CLEAN_FAILURE, full_disk, lambda _: [(kind, n) for kind in ("gpt2", "overfitted") for n in range(N_SIZES)], 2
    ),
    "temporarily-read-only": Group("exit 0, result equal to the reference run's", temporarily_read_only, times(20), 1),
    "file-size-limit": Group(CLEAN_FAILURE, file_size_limit, times(20), 1),
    "folder-removed": Group("exit 0, everything later saved as in the reference run", removed, times(20), 1),
}
