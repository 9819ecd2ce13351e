"""Shared by all trials: a text, kinds of runs, a reference run of each kind, and the comparison with it."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.faults.child import Child, Ended
from tiny_gpt.config import BEST_FILE, FINAL_FILE, METRICS_FILE
from tiny_gpt.device import configure_torch
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import sha256_of
from tiny_gpt.kernels.precompile import compile_all
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run.checkpoint import MODEL_FILE, OPTIMIZER_FILE
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError

Faults = Callable[[Child], None]

COMMON: dict[str, Any] = dict(n_layer=1, n_head=2, d_model=16, d_ff=32, block_size=16, batch_size=4, warmup_steps=8)
COMMON |= dict(epochs=4, iters_per_epoch=12, eval_interval=4, learning_rate=0.01, device="cpu", precision="fp32")
COMMON |= dict(backend="eager", watchdog=False, keep_awake=False, checkpoint_minutes=1e-9, dropout=0.0)
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "qwen3": dict(architecture="qwen3", dropout=0.1),
    "in parts": dict(grad_accum_steps=2, dropout=0.1, n_layer=2),
    "bf16": dict(precision="bf16", dropout=0.1),
    "fused": dict(backend="fused", dropout=0.1),
    # the best model is not the last one
    "overfitted": dict(learning_rate=0.1, min_learning_rate=0.1, weight_decay=0.0),
}
"""Settings that differ from COMMON."""
TIMING_COLUMNS = ("tokens_per_s", "elapsed_s", "memory_bytes", "time", "data_wait_share")


@dataclass(frozen=True)
class Result:
    """Everything in a finished run that its seed determines."""

    step: int
    weights: str
    """sha256 of the last checkpoint's weights; the next three are hashes too."""
    moments: str
    final_weights: str
    best_weights: str
    best_val_loss: float
    rows: list[dict[str, Any]]
    """The rows of metrics.jsonl."""


class World:
    """Made once per process; also sets tiny_gpt's cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = folder / "text.txt"
        rng = random.Random(0)
        words = "the cat sat on a mat and said hello to every dog in town".split()
        self.text.write_text("\n".join(" ".join(rng.choices(words, k=9)) + "." for _ in range(480)))
        os.environ["TINY_GPT_CACHE"] = str(folder / "cache")
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # so that processes under the watchdog compute like the reference run
        configure_torch(torch.device("cpu"))  # takes seconds the first time: here rather than in every child
        compile_all()  # likewise
        self.reference = cache(self._reference)

    def command(self, kind: str, folder: Path, **more: Any) -> list[str]:
        """Arguments of `tiny-gpt` that train a run of this kind in `folder`; a setting of None is omitted."""
        words = ["train", str(self.text), "--recipe", "overnight"]
        for name, value in (COMMON | KINDS[kind] | {"out_dir": folder} | more).items():
            name = name.replace("_", "-")
            switch = {None: [], False: [f"--no-{name}"], True: [f"--{name}"]}
            is_switch = value is None or isinstance(value, bool)
            words += switch[value] if is_switch else [f"--{name}", str(value)]
        return words

    def _reference(self, kind: str, **more: Any) -> "ReferenceRun":
        folder = self.folder / "references" / "-".join([kind.replace(" ", "-"), *map(str, more.values())])
        ended = Child(self.command(kind, folder, **more)).wait()
        assert ended.code == 0, f"the uninterrupted {kind} run failed: {ended}"
        return ReferenceRun(kind, more, folder, ended.seconds, result(folder))


@dataclass(frozen=True)
class ReferenceRun:
    """A run without faults."""

    kind: str
    more: dict[str, Any]
    folder: Path
    seconds: float
    result: Result


def result(folder: Path) -> Result:
    """The result of the finished run in `folder`; raises DamagedError, BadInputError, OSError or ValueError."""
    store = CheckpointStore(folder)
    last = store.verified(store.steps()[0])
    best = load_model(folder / BEST_FILE, torch.device("cpu"))
    final = load_model(folder / FINAL_FILE, torch.device("cpu"))
    return Result(
        last.step,
        sha256_of(last.path / MODEL_FILE),
        sha256_of(last.path / OPTIMIZER_FILE),
        sha256_of_weights(final.model),
        sha256_of_weights(best.model),
        best.progress.val_loss,
        rows(folder),
    )


def sha256_of_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without timing columns."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMING_COLUMNS} for line in lines]


def differences(folder: Path, reference: ReferenceRun, was_stopped: bool = False) -> list[str]:
    """How the finished run in `folder` differs from `reference`, one line each.

    A run that `was_stopped` was evaluated at one more step, and may have saved a better model there.
    """
    try:
        found = dataclasses.asdict(result(folder))
    except (DamagedError, BadInputError, OSError, ValueError, LookupError) as failure:
        return [f"the finished run cannot be read: {failure!r}"]
    wanted = dataclasses.asdict(reference.result)
    if was_stopped and found["best_val_loss"] < wanted["best_val_loss"]:
        wanted |= {name: found[name] for name in ("best_val_loss", "best_weights")}
    problems = [
        f"{name} differs from the reference run's" for name in wanted if name != "rows" and found[name] != wanted[name]
    ]
    if found["rows"] != wanted["rows"]:
        steps = [row["step"] for row in found["rows"]]
        problems.append(f"metrics.jsonl differs from the reference run's; it has the steps {steps}")
    return problems


def valid_steps(folder: Path) -> list[int]:
    """Steps of all valid checkpoints, newest first."""
    store, found = CheckpointStore(folder), []
    for step in store.steps():
        with contextlib.suppress(DamagedError):
            found.append(store.verified(step).step)
    return found


def damaged_steps(folder: Path) -> list[str]:
    """One line per checkpoint that does not verify."""
    damaged = set(CheckpointStore(folder).steps()) - set(valid_steps(folder))
    return [f"the checkpoint of step {step} bears its name and is damaged" for step in damaged]


def leftovers(folder: Path) -> list[str]:
    """One line per temporary file left behind."""
    found = [path for path in folder.rglob("*") if path.name.endswith((".part", ".old"))]
    return [f"{path.relative_to(folder)} is left" for path in found]


def resume_and_compare(
    world: World, reference: ReferenceRun, folder: Path, was_stopped: bool = False, allows_leftovers: bool = False
) -> list[str]:
    """Resume the run, let it finish, and compare it with its reference run. Returns the problems."""
    ended = resume_run(world, reference, folder)
    if ended.code != 0:
        return [f"it could not be brought to its end: {ended}"]
    return differences(folder, reference, was_stopped) + ([] if allows_leftovers else leftovers(folder))


def resume_run(world: World, reference: ReferenceRun, folder: Path, faults: Faults | None = None) -> Ended:
    """`tiny-gpt resume`, or the original command if there is nothing to resume."""
    ended = Child(["resume", str(folder)], faults).wait()
    if ended.code == 2 and "is finished" in ended.err:
        return dataclasses.replace(ended, code=0)
    if ended.code == 3 and ("start the run again" in ended.err or "no run" in ended.err):
        return Child(world.command(reference.kind, folder, **reference.more), faults).wait()
    return ended
