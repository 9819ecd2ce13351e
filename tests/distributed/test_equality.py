"""A run learns the same on two processes as on one: to the bit with --exact, else to rounding.

Two processes train all runs of CASES once; this one trains the same runs alone.
"""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.distributed.support import SHORTEST_SEQUENCE, Job, evaluations, final_weights, run_config, train_in_group
from tests.run.support import finish, interrupt, same_weights
from tiny_gpt.config import RunConfig
from tiny_gpt.training import schedule

QWEN3 = {"architecture": "qwen3", "n_layer": 2}
EXACT: dict[str, dict[str, Any]] = {
    "gpt2 adamw": {"exact": True},
    "qwen3 muon": {"model": QWEN3, "optimizer": "muon", "exact": True},
    "merged teachers": {"model": QWEN3, "teachers": 2, "exact": True},
    "growing sequences": {"model": QWEN3, "sequence_warmup": 0.8, "exact": True},
    "uneven micro-batches": {"grad_accum_steps": 1, "batch_size": 7, "exact": True},
}
ROUNDED: dict[str, dict[str, Any]] = {
    "gpt2 adamw, rounded": {"epochs": 4, "learning_rate": 1e-3},
    "qwen3 muon, rounded": {"model": QWEN3, "optimizer": "muon", "epochs": 4, "learning_rate": 1e-3},
}
STOPPED_AT = 10
Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A config of a run "... on 1" or "... on 2"."""
    folder = tmp_path_factory.mktemp("ranks")
    return lambda name, **settings: run_config(folder, name, **settings)


@pytest.fixture(scope="module")
def group(make: Make) -> Make:
    """All runs "... on 2" are trained."""
    jobs = [Job(make(f"{name} on 2", **settings)) for name, settings in (EXACT | ROUNDED).items()]
    jobs.append(Job(make("from 2 to 1", exact=True), interrupted_at=STOPPED_AT))
    moved = make("from 1 to 2", exact=True)
    interrupt(moved, STOPPED_AT)
    jobs.append(Job(moved, resume=True))
    jobs.append(Job(make("little memory", exact=True), n_sequences_of_last_rank=1))
    jobs.append(Job(make("small batch", batch_size=1, grad_accum_steps=1)))
    train_in_group(Path(make("jobs").train.out_dir), 2, jobs)
    return make


@pytest.fixture(scope="module")
def alone(make: Make) -> Make:
    """Trains a run on this process alone, once; returns its config."""

    @functools.cache
    def train(name: str) -> RunConfig:
        settings = (EXACT | ROUNDED | {"eight parts": {"exact": True, "grad_accum_steps": 8}, "in any order": {}})[name]
        if settings.get("grad_accum_steps") == 1:  # the group has divided its batches, one part for each
            settings = settings | {"grad_accum_steps": 2}
        config = make(f"{name} on 1", **settings)
        with mock.patch.object(schedule, "SHORTEST_SEQUENCE", SHORTEST_SEQUENCE):
            finish(config)
        return config

    return train


@pytest.mark.parametrize("name", EXACT)
def test_exact_runs_are_equal_to_the_bit(group: Make, alone: Make, name: str) -> None:
    ours, theirs = group(f"{name} on 2", **EXACT[name]), alone(name)
    assert evaluations(ours) == evaluations(theirs)
    assert same_weights(final_weights(ours), final_weights(theirs))


@pytest.mark.parametrize("name", ROUNDED)
def test_other_runs_are_equal_up_to_rounding(group: Make, alone: Make, name: str) -> None:
    ours, theirs = evaluations(group(f"{name} on 2", **ROUNDED[name])), evaluations(alone(name))
    assert len(ours) == len(theirs) == 8
    for (_, *losses, grad_norm), (_, *expected, expected_norm) in zip(ours, theirs, strict=True):
        assert losses == pytest.approx(expected, rel=1e-6)
        assert grad_norm == pytest.approx(expected_norm, rel=1e-4)


def test_a_run_continues_on_another_number_of_devices(group: Make, alone: Make) -> None:
    whole, down, up = alone("gpt2 adamw"), group("from 2 to 1", exact=True), group("from 1 to 2", exact=True)
    finish(down, resume=True)
    for moved in (down, up):
        assert evaluations(moved) == evaluations(whole)
        assert same_weights(final_weights(moved), final_weights(whole))


def test_where_one_runs_out_of_memory_all_compute_smaller_parts(group: Make, alone: Make) -> None:
    limited = group("little memory", exact=True)
    assert evaluations(limited) == evaluations(alone("eight parts"))
    assert any("out of memory" in line for line in warnings_of(limited))


def test_a_batch_of_one_block_is_not_shared(group: Make) -> None:
    folder = Path(group("small batch", batch_size=1, grad_accum_steps=1).train.out_dir)
    assert (folder / "error").read_text() == "more-devices-than-blocks"


def test_the_ranks_check_one_another(group: Make) -> None:
    folder = Path(group("jobs").train.out_dir)
    report, other = (json.loads((folder / f"nodes-{rank}.json").read_text()) for rank in (0, 1))
    assert other["ranks"] == report["ranks"]
    assert report["problems"] == [] and [facts["rank"] for facts in report["ranks"]] == [0, 1]
    hashes = {facts["text_sha256"] for facts in report["ranks"]}
    assert len(hashes) == 1 and re.fullmatch("[0-9a-f]{64}", hashes.pop())
    assert report["network"]["latency_s"] > 0 and report["network"]["bytes_per_s"] > 1e6


def test_exact_sums_are_those_of_any_order(alone: Make) -> None:
    exact, usual = evaluations(alone("gpt2 adamw")), evaluations(alone("in any order"))
    assert exact != usual
    for (_, *ours, _), (_, *theirs, _) in zip(exact, usual, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def warnings_of(config: RunConfig) -> list[str]:
    """The incidents in a run's last checkpoint."""
    last = sorted((Path(config.train.out_dir) / "checkpoints").glob("step-*"))[-1]
    incidents: list[str] = json.loads((last / "state.json").read_text())["run"]["incidents"]
    return incidents
