"""The train state: what a checkpoint holds comes back to the bit, and damage is refused."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tiny_gpt.config import (
    ModelConfig,
    RunConfig,
)
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run.checkpoint import MODEL_FILE, OPTIMIZER_FILE, checkpoint_files
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError
from tiny_gpt.run.description import RunDescription
from tiny_gpt.run.events import (
    Evaluated,
)
from tiny_gpt.run.state import RunCounters, TrainState


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


CONFIG = RunConfig(ModelConfig(n_layer=2, n_head=2, d_model=8, d_ff=16, block_size=4, dropout=0.0))


def train_state(architecture="gpt2", seed=0):
    torch.manual_seed(seed)
    config = replace(CONFIG, model=replace(CONFIG.model, architecture=architecture))
    return TrainState(GPT(config.model, 20), config.train)


def files_of(state):
    fields = state.to_dict() | RunDescription(CONFIG, CONFIG, {}, {}).state_fields()
    return checkpoint_files(state.tensors(), fields, state.history)


def evaluated(step, val_loss=1.5):
    return Evaluated(step, 1, 1.25, val_loss, 2.1, 1.3, 1e-4, 0.1 + 0.2, 12345.6, 7.8)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_a_state_round_trips_to_the_bit(store, architecture):
    ours, restored = train_state(architecture), train_state(architecture, seed=1)
    for _ in range(3):
        ours.model.losses(torch.randint(20, (2, 4)), torch.randint(20, (2, 4))).mean().backward()
        ours.optimizer.step()
    ours.counters.step, ours.counters.rate_factor, ours.counters.incidents = 3, 0.5, ["out of memory"]
    ours.history, ours.best = [evaluated(1), evaluated(2, 1.4)], evaluated(2, 1.4)
    ours.guard.should_skip(0, torch.tensor(1.1), torch.tensor(0.1))
    checkpoint = store.write(3, files_of(ours), ours.summary())
    restored.resume(checkpoint)
    assert (restored.counters, restored.history, restored.best) == (ours.counters, ours.history, ours.best)
    assert restored.guard.to_dict() == ours.guard.to_dict()
    for mine, its in ((ours.model.state_dict(), restored.model.state_dict()), (moments(ours), moments(restored))):
        assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
    assert restored.clock.elapsed_s >= ours.counters.train_s


def moments(state):
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    return {
        f"{names[p]}.{key}": tensor for p, values in state.optimizer.state.items() for key, tensor in values.items()
    }


def test_safetensors_opens_the_files(store):
    ours = train_state()
    path = store.write(0, files_of(ours), ours.summary()).path
    weights = load_file(path / MODEL_FILE)
    assert all(torch.equal(weights[name], weight) for name, weight in ours.model.state_dict().items())
    assert len(load_file(path / OPTIMIZER_FILE)) == 3 * len(weights)


def test_initial_moments_equal_those_of_torch():
    ours, theirs = train_state().optimizer, train_state().optimizer
    theirs.state.clear()
    for optimizer in (ours, theirs):
        for group in optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                parameter.grad = torch.full_like(parameter, 0.1 * i)
        optimizer.step()
    parameters = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in (ours, theirs)]
    for mine, its in ((ours.state[p], theirs.state[q]) for p, q in zip(*parameters, strict=True)):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key], its[key]) and mine[key].dtype == its[key].dtype for key in mine)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1},
        {"step": "3"},
        {"step": True},
        {"n_micro_batches": 1.5},
        {"rate_factor": None},
        {"rate_factor": math.inf},
        {"incidents": [1]},
        {"incidents": "x"},
        {"rolled_back_to": "x"},
        {"more": 1},
    ],
)
def test_invalid_counters_are_refused(changes):
    with pytest.raises(DamagedError):
        RunCounters.from_dict({**RunCounters().__dict__, **changes})


def test_missing_counters_get_defaults():
    assert RunCounters.from_dict({"step": 7, "n_micro_batches": 2}) == RunCounters(step=7, n_micro_batches=2)


def test_counters_of_earlier_versions_are_read():
    assert RunCounters.from_dict({"step": 7, "n_parts": 2}) == RunCounters(step=7, n_micro_batches=2)
