"""What all trials share: a text, kinds of runs, for each kind its uninterrupted twin, and what equals a twin."""

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
    # its best model is not its last
    "overfitted": dict(learning_rate=0.1, min_learning_rate=0.1, weight_decay=0.0),
}
"""Settings that differ from COMMON."""
MEASURED_BY_A_CLOCK = ("tokens_per_s", "elapsed_s")


@dataclass(frozen=True)
class Result:
    """All that a finished run leaves and that its seed decides."""

    step: int
    weights: str
    """sha256 of the last checkpoint's, as the next three."""
    moments: str
    final_weights: str
    best_weights: str
    best_val_loss: float
    rows: list[dict[str, Any]]
    """Of metrics.jsonl."""


class World:
    """Made once; sets where tiny_gpt's cache is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = folder / "text.txt"
        rng = random.Random(0)
        words = "the cat sat on a mat and said hello to every dog in town".split()
        self.text.write_text("\n".join(" ".join(rng.choices(words, k=9)) + "." for _ in range(480)))
        os.environ["TINY_GPT_CACHE"] = str(folder / "cache")
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # so that processes under the watchdog compute as their twins do
        configure_torch(torch.device("cpu"))  # takes seconds the first time: here, not in every child
        compile_all()  # likewise
        self.twin = cache(self._twin)

    def command(self, kind: str, folder: Path, **more: Any) -> list[str]:
        """The words after `tiny-gpt` that train a run of this kind in `folder`; a setting None is left alone."""
        words = ["train", str(self.text), "--recipe", "overnight"]
        for name, value in (COMMON | KINDS[kind] | {"out_dir": folder} | more).items():
            name = name.replace("_", "-")
            words += [] if value is None else [f"--no-{name}"] if value is False else [f"--{name}", str(value)]
        return words

    def _twin(self, kind: str, **more: Any) -> "Twin":
        folder = self.folder / "twins" / "-".join([kind.replace(" ", "-"), *map(str, more.values())])
        ended = Child(self.command(kind, folder, **more)).wait()
        assert ended.code == 0, f"the uninterrupted {kind} run failed: {ended}"
        return Twin(kind, more, folder, ended.seconds, result(folder))


@dataclass(frozen=True)
class Twin:
    """A run that nothing has disturbed."""

    kind: str
    more: dict[str, Any]
    folder: Path
    seconds: float
    result: Result


def result(folder: Path) -> Result:
    """What the finished run in `folder` has left; raises DamagedError, BadInputError, OSError or ValueError."""
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
    """metrics.jsonl without what a clock measures."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in MEASURED_BY_A_CLOCK} for line in lines
    ]


def differences(folder: Path, twin: Twin, was_stopped: bool = False) -> list[str]:
    """How the finished run in `folder` differs from `twin`, a line each; none where it does not.

    A run that `was_stopped` was evaluated at a step where the twin was not, and may have saved a better model there.
    """
    try:
        found = dataclasses.asdict(result(folder))
    except (DamagedError, BadInputError, OSError, ValueError, LookupError) as failure:
        return [f"the finished run cannot be read: {failure!r}"]
    wanted = dataclasses.asdict(twin.result)
    if was_stopped and found["best_val_loss"] < wanted["best_val_loss"]:
        wanted |= {name: found[name] for name in ("best_val_loss", "best_weights")}
    problems = [f"{name} differs from the twin's" for name in wanted if name != "rows" and found[name] != wanted[name]]
    if found["rows"] != wanted["rows"]:
        steps = [row["step"] for row in found["rows"]]
        problems.append(f"metrics.jsonl differs from the twin's; it has the steps {steps}")
    return problems


def whole_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints whose every byte verifies, the newest first."""
    store, found = CheckpointStore(folder), []
    for step in store.steps():
        with contextlib.suppress(DamagedError):
            found.append(store.verified(step).step)
    return found


def damaged_steps(folder: Path) -> list[str]:
    """A line for each checkpoint that bears its name and does not verify."""
    damaged = set(CheckpointStore(folder).steps()) - set(whole_steps(folder))
    return [f"the checkpoint of step {step} bears its name and is damaged" for step in damaged]


def leftovers(folder: Path) -> list[str]:
    """A line for each file that a writer has left behind."""
    found = [path for path in folder.rglob("*") if path.name.endswith((".part", ".old"))]
    return [f"{path.relative_to(folder)} is left" for path in found]


def to_the_end(
    world: World, twin: Twin, folder: Path, was_stopped: bool = False, allows_leftovers: bool = False
) -> list[str]:
    """Do what a person does in the morning, and hold the finished run against its twin. Returns the problems."""
    ended = go_on(world, twin, folder)
    if ended.code != 0:
        return [f"it could not be brought to its end: {ended}"]
    return differences(folder, twin, was_stopped) + ([] if allows_leftovers else leftovers(folder))


def go_on(world: World, twin: Twin, folder: Path, faults: Faults | None = None) -> Ended:
    """`tiny-gpt resume`, or where that says that there is nothing to resume, the command that started the run."""
    ended = Child(["resume", str(folder)], faults).wait()
    if ended.code == 2 and "is finished" in ended.err:
        return dataclasses.replace(ended, code=0)
    if ended.code == 3 and ("start the run again" in ended.err or "no run" in ended.err):
        return Child(world.command(twin.kind, folder, **twin.more), faults).wait()
    return ended
