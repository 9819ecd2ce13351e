"""One rank of a group that trains several runs: `python -m tests.distributed.worker FOLDER TIMEOUT_OF_A_RANK`.

FOLDER/jobs.json is a list of jobs (support.Job). The test reads what rank 0 writes into the runs' folders. At the end
the ranks check one another, as `doctor --nodes` does, into FOLDER/nodes-RANK.json. FOLDER/sent-RANK.json has the bytes
that all interfaces have sent in each job.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from tests.distributed.support import SHORTEST_SEQUENCE
from tests.run.support import interrupt
from tiny_gpt.cli.nodes import examine_ranks
from tiny_gpt.config import RunConfig
from tiny_gpt.distributed.ranks import Ranks, join_group
from tiny_gpt.errors import UsageError
from tiny_gpt.run.follower import follow
from tiny_gpt.run.run import run
from tiny_gpt.training import schedule, step


def do(job: dict[str, Any], ranks: Ranks) -> None:
    """One run, on this rank."""
    if not ranks.leads:
        follow(ranks)
        return
    config = RunConfig().with_flat(job["config"], "the test")
    try:
        if job["interrupted_at"]:
            interrupt(config, job["interrupted_at"])
        else:
            list(run(config, job["resume"]))
    except UsageError as failure:  # a rank that is lost ends this process instead: the others do not answer
        Path(config.train.out_dir).mkdir(exist_ok=True)
        Path(config.train.out_dir, "error").write_text(failure.code)


def with_little_memory(n_sequences: int) -> Any:
    """Forward and backward passes run out of memory here with more than so many sequences."""
    compute = step.accumulate_gradients

    def limited(model: Any, backend: Any, inputs_BT: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(inputs_BT) > n_sequences:
            raise torch.OutOfMemoryError("out of memory")
        return compute(model, backend, inputs_BT, *rest)

    return mock.patch.object(step, "accumulate_gradients", limited)


def main(folder: Path, patience_s: float) -> None:
    """All jobs, on this rank."""
    torch.set_num_threads(1)
    schedule.SHORTEST_SEQUENCE = SHORTEST_SEQUENCE
    ranks, sent = join_group("cpu", patience_s), list[int]()
    for job in json.loads((folder / "jobs.json").read_text()):
        is_limited = ranks.rank == ranks.size - 1 and job["n_sequences_of_last_rank"]
        with with_little_memory(job["n_sequences_of_last_rank"]) if is_limited else mock.MagicMock():
            before = psutil.net_io_counters().bytes_sent
            do(job, ranks)
            sent.append(psutil.net_io_counters().bytes_sent - before)
    (folder / f"sent-{ranks.rank}.json").write_text(json.dumps(sent))
    report = examine_ranks(ranks, [str(folder / "jobs.json")])
    (folder / f"nodes-{ranks.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
