"""Flipped bytes and truncated files: the damage is detected, and the run continues from an earlier checkpoint."""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from tests.faults.child import Child
from tests.faults.kills import FIRST_PROCESSES, first_process
from tests.faults.trial import Group, Trial, times
from tests.faults.world import World, differences, leftovers, resume_and_compare, resume_run, sha256_of_weights
from tiny_gpt.config import BEST_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import LoadedModel, load_model
from tiny_gpt.run.checkpoint_store import MANIFEST_FILE, CheckpointStore, DamagedError

KINDS_CUT = ("gpt2", "overfitted")
SMALL = dict(n_layer=1, n_head=1, d_model=2, d_ff=2, block_size=4)
STRIDE_SHORT = 97


def byte_flip(trial: Trial) -> list[str]:
    """Flip one byte of one file of a run that was stopped or killed half-way, then resume it."""
    rng = trial.rng
    kind, how = rng.choice(KINDS_CUT), rng.choice([*FIRST_PROCESSES])
    reference = trial.world.reference(kind)
    folder = trial.folder / "run"
    shutil.copytree(half_run(trial.world, kind, how), folder)
    path = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size])
    before = known(path)
    place = flip(path, rng)
    trial.note(f"{kind}, {how}: byte {place:,} of {path.relative_to(folder)}")
    is_noticed, problems = noticed(path, before), list[str]()
    if is_noticed is False:
        problems.append("the damage was not noticed")
    must_tell = is_noticed and is_needed(path, folder)
    ended = resume_run(trial.world, reference, folder)
    if ended.code != 0:
        return [*problems, f"it could not be brought to its end: {ended}"]
    name = path.name if path.name == BEST_FILE else path.parent.name
    if must_tell and not any("damaged" in line and name in line for line in ended.text.splitlines()):
        problems.append(f"the damage was not reported: {ended.text}")
    # The evaluation after Ctrl+C may have been the best of the whole run.
    return problems + differences(folder, reference, how == "stopped") + leftovers(folder)


@cache
def half_run(world: World, kind: str, how: str) -> Path:
    folder = world.folder / f"half-{kind}-{how}"
    Child(world.command(kind, folder), first_process(how, folder)).wait()
    return folder


def flip(path: Path, rng: random.Random) -> int:
    """Change one byte of a file; returns its offset."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= rng.randint(1, 255)
    path.write_bytes(content)
    return place


def known(path: Path) -> object:
    """The content of a file that must not change undetected; None for other files."""
    if path.suffix == ".pt":
        return essence(load_model(path, torch.device("cpu")))
    if path.parent.name.startswith("step-"):
        return json.loads(path.read_bytes()) if path.name == MANIFEST_FILE else path.read_bytes()
    return None


def essence(loaded: LoadedModel) -> tuple[object, ...]:
    return (
        sha256_of_weights(loaded.model),
        loaded.model.config,
        loaded.tokenizer.to_dict(),
        loaded.progress,
        loaded.run_config,
    )


def noticed(path: Path, before: object) -> bool | None:
    """Whether the damage is detected; None where the content that matters is unchanged."""
    if before is None:
        return None
    try:
        if path.suffix == ".pt":
            return None if essence(load_model(path, torch.device("cpu"))) == before else False
        CheckpointStore(path.parents[2]).verified(int(path.parent.name.removeprefix("step-")))
    except (DamagedError, BadInputError):
        return True
    return None if known(path) == before else False


def is_needed(path: Path, folder: Path) -> bool:
    """Whether resuming reads this file; older checkpoints are read only when needed."""
    store = CheckpointStore(folder)
    return path.name == BEST_FILE or path.parent == store.folder / f"step-{store.steps()[0]:08}"


def truncate_everywhere(trial: Trial) -> list[str]:
    """Truncate a file of the newest checkpoint at every length: it never verifies, and the previous one is used."""
    store, step = small_store(trial)
    path = store.folder / f"step-{step:08}" / trial.case
    lengths = range(path.stat().st_size - 1, -1, -STRIDE_SHORT if trial.is_short else -1)
    trial.n_checks, problems = len(lengths), list[str]()
    for length in lengths:
        os.truncate(path, length)
        problems += missed(store, step, f"{trial.case} cut to {length:,} bytes")
    return problems


def every_byte_flip(trial: Trial) -> list[str]:
    """Flip each byte of a file of the newest checkpoint in turn."""
    store, step = small_store(trial)
    path = store.folder / f"step-{step:08}" / trial.case
    whole, before = path.read_bytes(), known(path)
    places = range(0, len(whole), STRIDE_SHORT if trial.is_short else 1)
    trial.n_checks, problems = len(places), list[str]()
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ trial.rng.randint(1, 255)]) + whole[place + 1 :])
        if noticed(path, before) is not None:
            problems += missed(store, step, f"{trial.case} with another byte {place:,}")
    return problems


def odd_checkpoint(trial: Trial) -> list[str]:
    """Replace the newest checkpoint by something malformed; the run resumes from the previous one."""
    how, kind = trial.rng.choice([*FIRST_PROCESSES]), trial.rng.choice(KINDS_CUT)
    reference = trial.world.reference(kind)
    folder = trial.folder / "run"
    shutil.copytree(half_run(trial.world, kind, how), folder)
    store = CheckpointStore(folder)
    path = store.folder / f"step-{store.steps()[0]:08}"
    file = path / trial.rng.choice([entry.name for entry in sorted(path.iterdir())])
    trial.note(f"{kind}, {how}: {trial.case}, {file.name}")
    ODDITIES[trial.case](file)
    return resume_and_compare(trial.world, reference, folder, was_stopped=how == "stopped")


def missing(file: Path) -> None:
    file.unlink()


def longer(file: Path) -> None:
    with open(file, "ab") as end:
        end.write(bytes(1000))


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link(file: Path) -> None:
    os.rename(file, file.parents[2] / "elsewhere")
    file.symlink_to(file.parents[2] / "elsewhere")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def empty(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()


def of_another_step(file: Path) -> None:
    step = int(file.parent.name.removeprefix("step-"))
    os.rename(file.parent, file.parent.with_name(f"step-{step + 7:08}"))


def missed(store: CheckpointStore, step: int, what: str) -> list[str]:
    """Check that the damaged newest checkpoint is rejected, then restore it."""
    found, notes = store.newest()
    if found is None or found.step >= step or len(notes) != 1:
        return [f"{what}: the newest is now {found}, reported as {notes}"]
    os.rename(store.folder / "set-aside" / f"step-{step:08}", store.folder / f"step-{step:08}")
    return []


def small_store(trial: Trial) -> tuple[CheckpointStore, int]:
    """A copy of a small run's checkpoints, and the newest step."""
    shutil.copytree(trial.world.reference("gpt2", **SMALL).folder, trial.folder / "run")
    store = CheckpointStore(trial.folder / "run")
    return store, store.steps()[0]


FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "metrics.jsonl", "manifest.json")
ODDITIES: dict[str, Callable[[Path], None]] = {
    "a file is missing": missing,
    "a file is longer": longer,
    "a file is all zeros": zeros,
    "a file is a folder": folder,
    "a file is a link": link,
    "a file is a pipe": pipe,
    "it is empty": empty,
    "it bears another step's name": of_another_step,
}
NOTICED = "noticed, and the checkpoint before it taken"
GROUPS = {
    "byte-flips": Group(
        "detected or harmless; reported; result equal to the reference run's", byte_flip, times(400), 3
    ),
    "every-byte-flips": Group(NOTICED, every_byte_flip, lambda _: FILES, len(FILES)),
    "cut-at-every-length": Group(NOTICED, truncate_everywhere, lambda _: FILES, len(FILES)),
    "odd-checkpoints": Group(
        "result equal to the reference run's",
        odd_checkpoint,
        lambda _: [oddity for oddity in ODDITIES for _ in range(5)],
        2,
    ),
}
