"""Runs on several processes of this machine, and the same run on one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.run.support import TEXT, tiny_config
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.config import FINAL_FILE, RunConfig
from tiny_gpt.model_io.model_file import load_model

TIMEOUT_S = 300
# Of sequences that grow, in all these runs: their blocks are short.
SHORTEST_SEQUENCE = 2


@dataclass(frozen=True)
class Job:
    """A run that a group of processes trains."""

    config: RunConfig
    resume: bool = False
    interrupted_at: int = 0
    """Abandoned after the checkpoint of this step; 0: trained to its end."""
    n_sequences_of_last_rank: int = 0
    """The last rank runs out of memory with more sequences than this; 0: it never does."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"config": self.config.to_flat()}


def run_config(folder: Path, name: str, model: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    """Twenty steps of four micro-batches, with dropout and token noise, into `folder`/`name`."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(TEXT)
    config = tiny_config(text, folder / name)
    config = replace(config, model=replace(config.model, **(model or {})))
    settings: dict[str, Any] = {"epochs": 2, "grad_accum_steps": 4, "token_noise": 0.1} | train
    return replace(config, train=replace(config.train, **settings))


def start_group(
    folder: Path,
    n_ranks: int,
    jobs: list[Job],
    prefixes: Sequence[Sequence[str]] = (),
    address: str = "127.0.0.1",
    patience_s: float = 60.0,
) -> list[subprocess.Popen[bytes]]:
    """Processes that do `jobs` as one group.

    `prefixes`: the words before each rank's command; `address`: that of rank 0; `patience_s`: the timeout of a rank.
    """
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([job.to_json() for job in jobs]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": address, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.distributed.worker", str(folder), str(patience_s)]
    prefixes = prefixes or [()] * n_ranks
    return [
        subprocess.Popen([*prefix, *command], cwd=ROOT, env=os.environ | group | {"RANK": str(rank)})
        for rank, prefix in enumerate(prefixes)
    ]


def train_in_group(folder: Path, n_ranks: int, jobs: list[Job], *where: Any) -> None:
    """Do all `jobs` with `n_ranks` processes; `where` are further arguments of `start_group`."""
    processes = start_group(folder, n_ranks, jobs, *where)
    try:
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * n_ranks


def evaluations(config: RunConfig) -> list[list[float]]:
    """(step, train loss, validation loss, batch loss, gradient norm) of each evaluation, from the last checkpoint."""
    last = sorted((Path(config.train.out_dir) / "checkpoints").glob("step-*"))[-1]
    columns = ("step", "train_loss", "val_loss", "batch_loss", "grad_norm")
    rows = map(json.loads, (last / "metrics.jsonl").read_text().splitlines())
    return [[row.get(name, 0.0) for name in columns] for row in rows]


def final_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    return load_model(Path(config.train.out_dir) / FINAL_FILE, torch.device("cpu")).model.state_dict()
