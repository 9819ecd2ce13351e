"""Training on a CUDA GPU, held to the CPU and to itself. Nothing else depends on one being here."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_gpt.config import DataConfig, ModelConfig, ReliabilityConfig, RunConfig, TrainConfig
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.data.dataloader import BatchLoader, DeviceBatchReader, HostBatchReader
from tiny_gpt.data.sampler import Sampler
from tiny_gpt.model.gpt import GPT
from tiny_gpt.run.events import Evaluated, Finished, Prepared
from tiny_gpt.run.start import run
from tiny_gpt.training.cuda_graph import CudaGraph, make_cuda_graph_update
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.optimizer import OPTIMIZERS, make_optimizer
from tiny_gpt.training.schedule import learning_rate_at
from tiny_gpt.training.step import train_step

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here"),
    # torch warns of its own: deprecated functions that its compiler calls, what its watch for waiting may miss
    pytest.mark.filterwarnings("default"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VOCAB_SIZE = 65
MODEL = ModelConfig(n_layer=2, n_head=4, d_model=128, d_ff=256, block_size=64, dropout=0.0)
CONFIG = RunConfig(MODEL, train=TrainConfig(batch_size=16, warmup_steps=0))
CAPTURED = ["cuda_graph", "compiled"]


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    yield
    torch.compiler.reset()


class Learning:
    """A model with all that a step takes, the same every time; on a GPU what `run` would make of it."""

    def __init__(self, config=CONFIG, device=CUDA, dtype=torch.float32, backend="eager", n_micro_batches=1):
        torch.manual_seed(0)
        self.config = config = replace(config, train=replace(config.train, backend=backend))
        self.n_micro_batches = n_micro_batches
        self.model = GPT(config.model, VOCAB_SIZE, dtype).train()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        self.model.to(device)
        self.optimizer, self.guard = make_optimizer(self.model, config.train), Guard(self.model.device)
        self.cuda_graph = make_cuda_graph_update(self.model, self.optimizer, config.train, self.guard)
        ids = np.random.default_rng(0).integers(VOCAB_SIZE, size=10_000).astype(np.uint16)
        block_size, batch_size = config.model.block_size, config.train.batch_size
        self.batches = BatchLoader(ids, block_size, batch_size, seed=1, device=self.model.device)

    def step(self, step):
        batch = self.batches.batch(step)
        more = dict(n_micro_batches=self.n_micro_batches, guard=self.guard, cuda_graph=self.cuda_graph)
        train = self.config.train
        return train_step(self.model, self.optimizer, batch, train, step, learning_rate_at(step, train), **more)

    def losses(self, n_steps=4):
        """(loss, gradient norm) of the first steps; the later ones also show what the updates were."""
        return [[x.item() for x in self.step(step)] for step in range(n_steps)]


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_on_a_gpu_are_those_of_the_cpu_within_rounding(architecture, dtype, tolerance, optimizer):
    config = RunConfig(replace(MODEL, architecture=architecture), train=replace(CONFIG.train, optimizer=optimizer))
    expected, found = Learning(config, CPU).losses(), Learning(config, CUDA, dtype).losses()
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tolerance)


def test_batches_are_those_of_the_cpu_on_the_gpu():
    ids = np.random.default_rng(0).integers(VOCAB_SIZE, size=10_000).astype(np.uint16)
    order = Sampler(len(ids), 64, 16, seed=1, token_noise=0.1)
    held, read, here = (
        DeviceBatchReader(ids, order, CUDA),
        HostBatchReader(ids, order, CUDA),
        HostBatchReader(ids, order, CPU),
    )
    for step in (0, 1, 2, 7, 31, 32, 500):
        for one, other, expected in zip(held.batch(step), read.batch(step), here.batch(step), strict=True):
            for found in (one, other):
                assert found.is_cuda and found.is_contiguous() and torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("backend", ["eager", *CAPTURED])
@pytest.mark.parametrize("n_micro_batches", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits_for_the_gpu(backend, n_micro_batches, optimizer):
    config = RunConfig(replace(MODEL, dropout=0.1), train=replace(CONFIG.train, optimizer=optimizer))
    learning = Learning(config, dtype=torch.bfloat16, backend=backend, n_micro_batches=n_micro_batches)
    for step in range(4):  # the first are compiled and recorded
        learning.step(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4, 8):
            loss, _ = learning.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.parametrize("backend", CAPTURED)
@pytest.mark.parametrize("n_micro_batches", [1, 2])
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_recorded_steps_are_the_plain_ones(backend, n_micro_batches, architecture):
    optimizer = "muon" if architecture == "qwen3" else "adamw"
    config = RunConfig(replace(MODEL, architecture=architecture), train=replace(CONFIG.train, optimizer=optimizer))
    expected = Learning(config, n_micro_batches=n_micro_batches).losses(8)
    recorded = Learning(config, backend=backend, n_micro_batches=n_micro_batches)
    for one, other in zip(recorded.losses(8), expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    assert recorded.cuda_graph.is_recorded and recorded.cuda_graph.problem is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recorded_step_that_the_guard_skips_changes_nothing(optimizer):
    learning = Learning(replace(CONFIG, train=replace(CONFIG.train, optimizer=optimizer)), backend="cuda_graph")
    learning.losses(5)
    weight = learning.model.head.weight
    before = weight[0, 0].item()

    def state():
        moments = [tensor for state in learning.optimizer.state.values() for tensor in state.values()]
        return [tensor.clone() for tensor in [*learning.model.state_dict().values(), *moments]]

    with torch.no_grad():
        weight[0, 0] = torch.nan
    known = state()
    assert not learning.step(5)[0].isfinite()
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(known, state(), strict=True))
    assert learning.guard.n_skipped_in_all() == 1
    with torch.no_grad():
        weight[0, 0] = before
    assert learning.step(6)[0].isfinite() and not learning.model.head.weight.isnan().any()
    assert not any(torch.equal(a, b) for a, b in zip(known, state(), strict=True) if a.ndim == 2)


def test_what_cannot_be_recorded_is_done_as_it_is():
    done = torch.zeros((), device=CUDA)
    drawn = torch.zeros(4, device=CUDA)

    def work():
        drawn.copy_(torch.rand(4, device=CUDA))
        done.add_(1 if done.item() >= 0 else 0)  # reading a number waits, which no recording can

    recording, numbers = CudaGraph(work, CUDA), []
    for _ in range(5):
        torch.manual_seed(3)
        recording()
        numbers.append(drawn.tolist())
    assert done.item() == 5 and recording.problem is not None
    assert all(its == numbers[0] for its in numbers)


@pytest.mark.parametrize("backend", ["eager", *CAPTURED])
def test_dropout_follows_the_seed_of_the_step(backend):
    config = replace(CONFIG, model=replace(MODEL, dropout=0.5))
    first, again = (Learning(config, backend=backend).losses(5) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    other_seed = replace(config, train=replace(config.train, seed=1))
    assert Learning(other_seed, backend=backend).losses(1)[0] != pytest.approx(first[0], rel=1e-4)


@pytest.mark.parametrize("backend", CAPTURED)
def test_a_captured_step_can_be_done_in_more_parts_later(backend):
    """As it is when memory runs out."""
    learning = Learning(backend=backend)
    expected = Learning().losses(6)
    found = learning.losses(3)
    learning.n_micro_batches = 4
    found += [[x.item() for x in learning.step(step)] for step in range(3, 6)]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("backend", ["auto", "eager", *CAPTURED])
def test_a_whole_run_learns(tmp_path, backend):
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz\n" * 400)
    train = TrainConfig(
        epochs=2,
        iters_per_epoch=40,
        eval_interval=20,
        batch_size=16,
        learning_rate=5e-3,
        warmup_steps=5,
        backend=backend,
    )
    train = replace(train, device="cuda", out_dir=str(tmp_path / "run"))
    events = list(
        run(RunConfig(MODEL, DataConfig((str(tmp_path / "text.txt"),)), train, ReliabilityConfig(keep_awake=False)))
    )
    prepared = next(event for event in events if isinstance(event, Prepared))
    assert prepared.backend == backend or (backend == "auto" and prepared.backend in ("cuda_graph", "eager"))
    assert [event.val_loss for event in events if isinstance(event, Evaluated)][-1] < 1.0
    assert events[-1].incidents == []


def test_a_run_that_a_clock_ends_ends_on_time_with_a_plan(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz\n" * 4000)
    auto = RECIPES["auto"]
    train = replace(auto.train, for_="8s", device="cuda", out_dir=str(tmp_path / "run"))
    start = time.monotonic()
    events = list(run(replace(auto, data=replace(auto.data, data=(str(tmp_path / "text.txt"),)), train=train)))
    prepared = next(event for event in events if isinstance(event, Prepared))
    assert prepared.plan is not None and prepared.plan.memory_bytes > 0
    finished = events[-1]
    assert isinstance(finished, Finished)
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert evaluations[-1].val_loss < 0.2 and evaluations[-1].learning_rate < 0.05 * evaluations[0].learning_rate
    assert time.monotonic() - start < 8 + 10 + 30  # and what comes before the first step
