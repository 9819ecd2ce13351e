"""Bytes that changed on the disk, and files that were cut short: noticed, and the run goes on all the same."""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from tests.faults.child import Child
from tests.faults.kills import FIRST_LIVES, first_life
from tests.faults.trial import Group, Trial, times
from tests.faults.world import World, differences, go_on, leftovers, sha256_of_weights, to_the_end
from tiny_gpt.config import BEST_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import LoadedModel, load_model
from tiny_gpt.run.checkpoint_store import MANIFEST_FILE, CheckpointStore, DamagedError

KINDS_CUT = ("gpt2", "overfitted")
SMALL = dict(n_layer=1, n_head=1, d_model=2, d_ff=2, block_size=4)
STRIDE_SHORT = 97


def a_byte_flips(trial: Trial) -> list[str]:
    """In a run that was stopped or killed half-way, one byte of one file changes; then the run goes on."""
    rng = trial.rng
    kind, how = rng.choice(KINDS_CUT), rng.choice([*FIRST_LIVES])
    twin = trial.world.twin(kind)
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
    ended = go_on(trial.world, twin, folder)
    if ended.code != 0:
        return [*problems, f"it could not be brought to its end: {ended}"]
    name = path.name if path.name == BEST_FILE else path.parent.name
    if must_tell and not any("damaged" in line and name in line for line in ended.text.splitlines()):
        problems.append(f"the damage was not told: {ended.text}")
    # What Ctrl+C had evaluated may have been better than all that comes after it.
    return problems + differences(folder, twin, how == "stopped") + leftovers(folder)


@cache
def half_run(world: World, kind: str, how: str) -> Path:
    folder = world.folder / f"half-{kind}-{how}"
    Child(world.command(kind, folder), first_life(how, folder)).wait()
    return folder


def flip(path: Path, rng: random.Random) -> int:
    """Give one byte of a file another value; returns its place."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= rng.randint(1, 255)
    path.write_bytes(content)
    return place


def known(path: Path) -> object:
    """What a program reads out of a file that must not change unnoticed; None of the others."""
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
    """Whether the program finds the damage; None where the file says the same as before, or nothing that counts."""
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
    """Whether a run that goes on looks at this file; older checkpoints it leaves alone until they are needed."""
    store = CheckpointStore(folder)
    return path.name == BEST_FILE or path.parent == store.folder / f"step-{store.steps()[0]:08}"


def cut_short(trial: Trial) -> list[str]:
    """At every length of a file of the newest checkpoint: never taken for whole; the one before it is found."""
    store, step = small_store(trial)
    path = store.folder / f"step-{step:08}" / trial.case
    lengths = range(path.stat().st_size - 1, -1, -STRIDE_SHORT if trial.is_short else -1)
    trial.n_checks, problems = len(lengths), list[str]()
    for length in lengths:
        os.truncate(path, length)
        problems += missed(store, step, f"{trial.case} cut to {length:,} bytes")
    return problems


def every_byte_flips(trial: Trial) -> list[str]:
    """Each byte of a file of the newest checkpoint in turn."""
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
    """The newest checkpoint has become something that nobody writes; the run goes on from the one before it."""
    how, kind = trial.rng.choice([*FIRST_LIVES]), trial.rng.choice(KINDS_CUT)
    twin = trial.world.twin(kind)
    folder = trial.folder / "run"
    shutil.copytree(half_run(trial.world, kind, how), folder)
    store = CheckpointStore(folder)
    path = store.folder / f"step-{store.steps()[0]:08}"
    file = path / trial.rng.choice([entry.name for entry in sorted(path.iterdir())])
    trial.note(f"{kind}, {how}: {trial.case}, {file.name}")
    ODDITIES[trial.case](file)
    return to_the_end(trial.world, twin, folder, was_stopped=how == "stopped")


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
    """Put the newest checkpoint, which is damaged, to the test; it is in its place again afterwards."""
    found, notes = store.newest()
    if found is None or found.step >= step or len(notes) != 1:
        return [f"{what}: the newest is now {found}, told as {notes}"]
    os.rename(store.folder / "set-aside" / f"step-{step:08}", store.folder / f"step-{step:08}")
    return []


def small_store(trial: Trial) -> tuple[CheckpointStore, int]:
    """A copy of a small run's checkpoints, and the newest step."""
    shutil.copytree(trial.world.twin("gpt2", **SMALL).folder, trial.folder / "run")
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
    "byte-flips": Group("noticed or harmless; told; the end equal to the twin's", a_byte_flips, times(1000), 3),
    "every-byte-flips": Group(NOTICED, every_byte_flips, lambda _: FILES, len(FILES)),
    "cut-at-every-length": Group(NOTICED, cut_short, lambda _: FILES, len(FILES)),
    "odd-checkpoints": Group(
        "the end equal to the twin's", odd_checkpoint, lambda _: [oddity for oddity in ODDITIES for _ in range(5)], 2
    ),
}
