"""What the tests of the commands share: a tiny training, and a look at what a run left."""

import json
import re
from typing import NamedTuple

import torch

from tiny_gpt.model_io.model_file import load_model

TINY = dict(n_layer=1, n_head=2, d_model=16, d_ff=32, block_size=16, batch_size=4, epochs=2, iters_per_epoch=6)
TINY |= dict(eval_interval=3, device="cpu", precision="fp32", backend="eager", watchdog=False, keep_awake=False)
RUN_FILES = ["config.json", "metrics.jsonl", "status.json", "tiny_gpt_best.pt", "tiny_gpt_final.pt", "train.log"]
# Of a whole command, which writes the report after the training.
REPORT_FILES = ["report.html", "text_facts.json"]
# Forms of what a training prints.
LOSS = r"\d+\.\d{4}"
DETAILS = rf"train_loss={LOSS}, val_loss={LOSS}, batch_loss={LOSS}, lr=\d\.\de-\d\d"
SPEED = r"\d+\.\d\d(it/s|s/it)"


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    error_code: str
    """Of the error that ended it, "" without one."""

    def assert_error(self, exit_code, error_code, *values):
        """It failed so, with a message of one or two lines that has the `values`, and printed nothing else.

        `error_code` None: any code.
        """
        assert (self.code, self.out) == (exit_code, "") and self.error_code == (error_code or self.error_code), self
        assert all(value in self.err for value in values), self.err
        assert re.fullmatch(r"error: .+\n(.+\n)?", self.err), self.err


def flags(**settings):
    """n_layer=1 -> --n-layer 1, watchdog=False -> --no-watchdog."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        words += [f"--no-{flag}"] if value is False else [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return words


def rows(folder):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    """The metrics that a run's seed determines."""
    names = ("step", "epoch", "train_loss", "val_loss", "batch_loss", "lr", "grad_norm")
    return [{name: row[name] for name in names} for row in rows(folder)]


def files_of(folder):
    """What a run left in its folder, without checkpoints, samples and lock."""
    found = [path.relative_to(folder) for path in folder.rglob("*")]
    assert not any(path.name.endswith((".part", ".old")) for path in found)
    return sorted(path.as_posix() for path in found if path.parts[0] not in ("checkpoints", "samples", ".lock"))


def load(path):
    return load_model(path, torch.device("cpu"))
