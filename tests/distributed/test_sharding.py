"""A model divided among two processes learns what a whole one learns, and continues on one process and back."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.support import Job, evaluations, run_config, train_in_group
from tests.run.support import CPU, finish, interrupt
from tiny_gpt.config import BEST_FILE, RunConfig
from tiny_gpt.model_io.model_file import load_model

pytestmark = pytest.mark.slow

# Widths that two ranks cannot divide evenly.
ODD = {"d_model": 18, "d_ff": 37, "n_layer": 3}
RUNS: dict[str, dict[str, Any]] = {
    "gpt2 adamw": {"model": ODD},
    "qwen3 muon": {"model": {**ODD, "architecture": "qwen3", "d_model": 20, "n_head": 2}, "optimizer": "muon"},
    "uneven": {"model": ODD, "grad_accum_steps": 3, "batch_size": 7, "recompute": True},
}
CALM: dict[str, Any] = {"learning_rate": 1e-3, "min_learning_rate": 1e-4}
STOPPED_AT = 10
Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("shards")
    return lambda name, **settings: run_config(folder, name, **(CALM | settings))


@pytest.fixture(scope="module")
def group(make: Make) -> Make:
    """Two processes have trained all runs."""
    jobs = [Job(make(f"{name} sharded", shard=True, **settings)) for name, settings in RUNS.items()]
    jobs.append(Job(make("to one", shard=True, **RUNS["qwen3 muon"]), interrupted_at=STOPPED_AT))
    moved = make("to two", shard=True, **RUNS["qwen3 muon"])
    interrupt(moved, STOPPED_AT)
    jobs.append(Job(moved, resume=True))
    train_in_group(Path(make("jobs").train.out_dir), 2, jobs)
    return make


@pytest.fixture(scope="module")
def alone(make: Make) -> Make:
    @functools.cache
    def train(name: str) -> RunConfig:
        config = make(f"{name} alone", **RUNS[name])
        finish(config)
        return config

    return train


@pytest.mark.parametrize("name", RUNS)
def test_a_sharded_model_learns_the_same(group: Make, alone: Make, name: str) -> None:
    assert_equal_runs(group(f"{name} sharded", shard=True, **RUNS[name]), alone(name))


def test_a_sharded_run_continues_on_one_device_and_back(group: Make, alone: Make) -> None:
    settings = RUNS["qwen3 muon"]
    to_one, to_two = (group(name, shard=True, **settings) for name in ("to one", "to two"))
    finish(to_one, resume=True)
    for moved in (to_one, to_two):
        assert_equal_runs(moved, alone("qwen3 muon"))


def test_model_files_are_whole(group: Make, alone: Make) -> None:
    config = group("gpt2 adamw sharded", shard=True, **RUNS["gpt2 adamw"])
    best, expected = (load_model(Path(run.train.out_dir) / BEST_FILE, CPU) for run in (config, alone("gpt2 adamw")))
    assert best.progress.val_loss == pytest.approx(expected.progress.val_loss, rel=1e-6)
    for name, weight in expected.model.state_dict().items():
        assert (best.model.state_dict()[name] - weight).norm() < 1e-4 * weight.norm().clamp(min=1e-3), name


def assert_equal_runs(ours: RunConfig, theirs: RunConfig) -> None:
    rows, expected_rows = evaluations(ours), evaluations(theirs)
    assert len(rows) == len(expected_rows) == 4
    for (_, *losses, grad_norm), (_, *expected, expected_norm) in zip(rows, expected_rows, strict=True):
        assert losses == pytest.approx(expected, rel=1e-6)
        assert grad_norm == pytest.approx(expected_norm, rel=1e-4)
