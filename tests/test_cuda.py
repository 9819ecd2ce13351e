"""Training on a CUDA GPU, held to the CPU and to itself. Nothing else depends on one being here."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_gpt.config import DataConfig, ModelConfig, NightConfig, RunConfig, TrainConfig
from tiny_gpt.data.batches import Batches
from tiny_gpt.model.gpt import GPT
from tiny_gpt.training.events import Evaluated, Prepared
from tiny_gpt.training.guard import Guard
from tiny_gpt.training.optimizer import OPTIMIZERS, make_optimizer
from tiny_gpt.training.run import run
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
COMPILED = ["compiled", "captured"]


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    yield
    torch.compiler.reset()


class Learning:
    """A model with all that a step takes, the same every time; on a GPU what `run` would make of it."""

    def __init__(self, config=CONFIG, device=CUDA, dtype=torch.float32, path="plain", n_parts=1):
        torch.manual_seed(0)
        self.config, self.n_parts = config, n_parts
        self.model = GPT(config.model, VOCAB_SIZE, dtype).train()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        self.model.to(device)
        self.model.path = path
        self.optimizer, self.guard = make_optimizer(self.model, config.train), Guard(self.model.device)
        ids = np.random.default_rng(0).integers(VOCAB_SIZE, size=10_000).astype(np.uint16)
        block_size, batch_size = config.model.block_size, config.train.batch_size
        self.batches = Batches(ids, block_size, batch_size, seed=1, device=self.model.device)

    def step(self, step):
        batch = self.batches.batch(step)
        return train_step(self.model, self.optimizer, batch, self.config, step, n_parts=self.n_parts, guard=self.guard)

    def losses(self, n_steps=4):
        """(loss, gradient norm) of the first steps; the later ones also show what the updates were."""
        return [[x.item() for x in self.step(step)] for step in range(n_steps)]


@pytest.mark.parametrize("architecture", ["classic", "modern"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_on_a_gpu_are_those_of_the_cpu_within_rounding(architecture, dtype, tolerance, optimizer):
    config = RunConfig(replace(MODEL, architecture=architecture), train=replace(CONFIG.train, optimizer=optimizer))
    expected, found = Learning(config, CPU).losses(), Learning(config, CUDA, dtype).losses()
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tolerance)


def test_batches_are_those_of_the_cpu_on_the_gpu():
    there, here = Learning(device=CUDA).batches, Learning(device=CPU).batches
    for step in (0, 1, 2, 7):
        for one, other in zip(there.batch(step), here.batch(step), strict=True):
            assert one.is_cuda and one.is_contiguous() and torch.equal(one.cpu(), other)


@pytest.mark.parametrize("path", ["plain", *COMPILED])
@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits_for_the_gpu(path, n_parts, optimizer):
    config = RunConfig(replace(MODEL, dropout=0.1), train=replace(CONFIG.train, optimizer=optimizer))
    learning = Learning(config, dtype=torch.bfloat16, path=path, n_parts=n_parts)
    for step in range(4):  # the first compile and capture
        learning.step(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4, 8):
            loss, _ = learning.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.parametrize("path", COMPILED)
@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_compiled_steps_are_the_plain_ones(path, n_parts, architecture):
    config = replace(CONFIG, model=replace(MODEL, architecture=architecture))
    expected = Learning(config, n_parts=n_parts).losses(6)
    found = Learning(config, path=path, n_parts=n_parts).losses(6)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("path", ["plain", *COMPILED])
def test_dropout_follows_the_seed_of_the_step(path):
    config = replace(CONFIG, model=replace(MODEL, dropout=0.5))
    first, again = (Learning(config, path=path).losses(5) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    other_seed = replace(config, train=replace(config.train, seed=1))
    assert Learning(other_seed, path=path).losses(1)[0] != pytest.approx(first[0], rel=1e-4)


@pytest.mark.parametrize("path", COMPILED)
def test_a_captured_step_can_be_done_in_more_parts_later(path):
    """As it is when memory runs out."""
    learning = Learning(path=path)
    expected = Learning().losses(6)
    found = learning.losses(3)
    learning.n_parts = 4
    found += [[x.item() for x in learning.step(step)] for step in range(3, 6)]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("path", ["auto", "plain", *COMPILED])
def test_a_whole_run_learns(tmp_path, path):
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz\n" * 400)
    train = TrainConfig(
        epochs=2, iters_per_epoch=40, eval_interval=20, batch_size=16, learning_rate=5e-3, warmup_steps=5, path=path
    )
    train = replace(train, device="cuda", out_dir=str(tmp_path / "run"))
    events = list(
        run(RunConfig(MODEL, DataConfig((str(tmp_path / "text.txt"),)), train, NightConfig(keep_awake=False)))
    )
    prepared = next(event for event in events if isinstance(event, Prepared))
    assert prepared.path == ("plain" if path == "auto" else path)
    assert [event.val_loss for event in events if isinstance(event, Evaluated)][-1] < 1.0
    assert events[-1].incidents == []
