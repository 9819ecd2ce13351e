"""Training on a CUDA GPU equals training on the CPU, and CUDA graphs equal the eager backend. Skipped without a GPU."""

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
from tiny_gpt.model.soft_targets import SoftTargets
from tiny_gpt.run.events import Evaluated, Finished, Prepared
from tiny_gpt.run.run import run
from tiny_gpt.training.cuda_graph import CudaGraph, make_cuda_graph_update
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.optimizer import OPTIMIZERS, make_optimizer, set_regularization
from tiny_gpt.training.schedule import learning_rate_at
from tiny_gpt.training.step import train_step

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # torch itself warns: of deprecated functions that its compiler calls, of what its synchronization check may miss.
    pytest.mark.filterwarnings("default"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VOCAB_SIZE = 65
MODEL = ModelConfig(n_layer=2, n_head=4, d_model=128, d_ff=256, block_size=64, dropout=0.0)
CONFIG = RunConfig(MODEL, train=TrainConfig(batch_size=16, warmup_steps=0))
GRAPHED = ["cuda_graph", "compiled"]


@pytest.fixture(autouse=True)
def reset_compiler():
    yield
    torch.compiler.reset()


class Training:
    """A model and everything a step needs, always the same; on a GPU as `run` would set it up."""

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

    def step(self, step, is_soft=False):
        """One step; `is_soft`: towards a teacher that predicts the token after the right one, by its number."""
        batch = self.batches.batch(step)
        if is_soft:
            ids_BTN = (batch.targets_BT.unsqueeze(-1) + 1) % VOCAB_SIZE
            batch = batch._replace(soft_targets=SoftTargets(ids_BTN, torch.ones(ids_BTN.shape, device=ids_BTN.device)))
        more = dict(n_micro_batches=self.n_micro_batches, guard=self.guard, cuda_graph=self.cuda_graph)
        train = self.config.train
        return train_step(self.model, self.optimizer, batch, train, step, learning_rate_at(step, train), **more)

    def losses(self, n_steps=4):
        """(loss, gradient norm) of the first steps; each depends on the updates before."""
        return [[x.item() for x in self.step(step)] for step in range(n_steps)]


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gpu_steps_equal_cpu_steps_within_rounding(architecture, dtype, tolerance, optimizer):
    config = RunConfig(replace(MODEL, architecture=architecture), train=replace(CONFIG.train, optimizer=optimizer))
    expected, found = Training(config, CPU).losses(), Training(config, CUDA, dtype).losses()
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tolerance)


def test_gpu_batches_equal_cpu_batches():
    ids = np.random.default_rng(0).integers(VOCAB_SIZE, size=10_000).astype(np.uint16)
    order = Sampler(len(ids), 64, 16, seed=1, token_noise=0.1)
    held, read, here = (
        DeviceBatchReader(ids, order, CUDA),
        HostBatchReader(ids, order, CUDA),
        HostBatchReader(ids, order, CPU),
    )
    for step in (0, 1, 2, 7, 31, 32, 500):
        batches = [reader.batch(step)[:2] for reader in (held, read, here)]
        for *on_gpu, expected in zip(*batches, strict=True):
            for found in on_gpu:
                assert found.is_cuda and found.is_contiguous() and torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("backend", ["eager", *GRAPHED])
@pytest.mark.parametrize("n_micro_batches", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_do_not_synchronize(backend, n_micro_batches, optimizer):
    config = RunConfig(replace(MODEL, dropout=0.1), train=replace(CONFIG.train, optimizer=optimizer))
    training = Training(config, dtype=torch.bfloat16, backend=backend, n_micro_batches=n_micro_batches)
    for step in range(4):  # the first are compiled and recorded
        training.step(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4, 8):
            loss, _ = training.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.parametrize("backend", GRAPHED)
@pytest.mark.parametrize("n_micro_batches", [1, 2])
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_graphed_steps_equal_eager_ones(backend, n_micro_batches, architecture):
    optimizer = "muon" if architecture == "qwen3" else "adamw"
    config = RunConfig(replace(MODEL, architecture=architecture), train=replace(CONFIG.train, optimizer=optimizer))
    expected = Training(config, n_micro_batches=n_micro_batches).losses(8)
    recorded = Training(config, backend=backend, n_micro_batches=n_micro_batches)
    for one, other in zip(recorded.losses(8), expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    assert recorded.cuda_graph.is_recorded and recorded.cuda_graph.problem is None


@pytest.mark.parametrize("backend", GRAPHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphed_steps_follow_the_stage(backend, dtype):
    """One stage with dropout, then one without, with soft targets and another weight decay."""
    config = replace(CONFIG, model=replace(MODEL, dropout=0.5))

    def losses(backend):
        training = Training(config, dtype=dtype, backend=backend)
        training.losses(4)
        set_regularization(training.model, training.optimizer, dropout=0.0, weight_decay=2.0)
        with torch.no_grad():  # the dropout of the two backends differs
            for number, parameter in enumerate(training.model.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 50)
        if training.cuda_graph:
            training.cuda_graph.forget()
        return [training.step(step, is_soft=True).loss.item() for step in range(4, 8)]

    assert losses(backend) == pytest.approx(losses("eager"), rel=2e-3 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_graphed_step_changes_nothing(optimizer):
    training = Training(replace(CONFIG, train=replace(CONFIG.train, optimizer=optimizer)), backend="cuda_graph")
    training.losses(5)
    weight = training.model.head.weight
    before = weight[0, 0].item()

    def state():
        moments = [tensor for state in training.optimizer.state.values() for tensor in state.values()]
        return [tensor.clone() for tensor in [*training.model.state_dict().values(), *moments]]

    with torch.no_grad():
        weight[0, 0] = torch.nan
    known = state()
    assert not training.step(5)[0].isfinite()
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(known, state(), strict=True))
    assert training.guard.total_skipped() == 1
    with torch.no_grad():
        weight[0, 0] = before
    assert training.step(6)[0].isfinite() and not training.model.head.weight.isnan().any()
    assert not any(torch.equal(a, b) for a, b in zip(known, state(), strict=True) if a.ndim == 2)


def test_unrecordable_work_runs_eagerly():
    done = torch.zeros((), device=CUDA)
    drawn = torch.zeros(4, device=CUDA)

    def work():
        drawn.copy_(torch.rand(4, device=CUDA))
        done.add_(1 if done.item() >= 0 else 0)  # reading a number synchronizes, which cannot be recorded

    graph, numbers = CudaGraph(work, CUDA), []
    for _ in range(5):
        torch.manual_seed(3)
        graph()
        numbers.append(drawn.tolist())
    assert done.item() == 5 and graph.problem is not None
    assert all(drawn_again == numbers[0] for drawn_again in numbers)


@pytest.mark.parametrize("backend", ["eager", *GRAPHED])
def test_dropout_follows_the_seed_of_the_step(backend):
    config = replace(CONFIG, model=replace(MODEL, dropout=0.5))
    first, again = (Training(config, backend=backend).losses(5) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    other_seed = replace(config, train=replace(config.train, seed=1))
    assert Training(other_seed, backend=backend).losses(1)[0] != pytest.approx(first[0], rel=1e-4)


@pytest.mark.parametrize("backend", GRAPHED)
def test_graphed_steps_can_use_more_micro_batches_later(backend):
    """As happens when memory runs out."""
    training = Training(backend=backend)
    expected = Training().losses(6)
    found = training.losses(3)
    training.n_micro_batches = 4
    found += [[x.item() for x in training.step(step)] for step in range(3, 6)]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("backend", ["auto", "eager", *GRAPHED])
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


def test_a_timed_run_ends_on_time_with_a_plan(tmp_path):
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
    assert time.monotonic() - start < 8 + 10 + 30  # plus what precedes the first step
