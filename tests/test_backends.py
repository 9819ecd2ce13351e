"""The loss that torch.compile makes is the plain one, and of one piece: what a GPU computes, compiled here on a CPU."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from tiny_gpt import backends
from tiny_gpt.backends import BACKENDS
from tiny_gpt.config import ModelConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.model import gpt
from tiny_gpt.model.gpt import GPT

VOCAB_SIZE = 17
# What torch imports for it calls deprecated functions of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler, and none is here"
)


@pytest.fixture(autouse=True)
def forget_what_was_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    backends.compiled_eager_loss.cache_clear()
    yield
    torch.compiler.reset()
    backends.compiled_eager_loss.cache_clear()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Attention and dropout as GPUs have them, which a CPU can compute too."""

    def attention(q, k, v, dropout_p=0.0):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout_p)

    monkeypatch.setattr(gpt, "causal_attention", attention)
    monkeypatch.setattr(gpt, "dropout", F.dropout)


def model_and_batch(architecture, dtype=torch.float32, dropout=0.0):
    torch.manual_seed(0)
    config = ModelConfig(architecture, n_layer=2, n_head=2, d_model=16, d_ff=32, block_size=8, dropout=dropout)
    ids = torch.randint(VOCAB_SIZE, (3, 9))
    model = GPT(config, VOCAB_SIZE, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def loss_and_gradients(model, batch, backend):
    model.zero_grad()
    torch.manual_seed(1)
    loss = BACKENDS[backend].loss(model, *batch)
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_close(found, expected, tolerance):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=0)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 0.02, marks=pytest.mark.slow)]
)
def test_what_a_gpu_computes_is_of_one_piece_and_has_the_same_gradients(
    as_on_a_gpu, monkeypatch, architecture, dtype, tolerance
):
    """Traced and differentiated as for a GPU; only the machine code is left out, for which a compiler takes longer."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compile_(f, fullgraph=True, backend="aot_eager", **o))
    model, batch = model_and_batch(architecture, dtype)
    expected = loss_and_gradients(model, batch, "eager")
    assert_close(loss_and_gradients(model, batch, "compiled"), expected, tolerance)


@pytest.mark.slow
def test_dropout_is_compiled_too_and_follows_the_seed(as_on_a_gpu, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compile_(f, fullgraph=True, backend="aot_eager", **o))
    model, batch = model_and_batch("gpt2", dropout=0.5)
    first, again = (loss_and_gradients(model, batch, "compiled") for _ in range(2))
    assert_close(first, again, 0.0)
    torch.manual_seed(2)
    assert BACKENDS["compiled"].loss(model, *batch) != first[0]


def test_another_model_of_the_same_shape_takes_the_same_code(as_on_a_gpu, monkeypatch):
    n_compiled = 0

    def count(graph, inputs):
        nonlocal n_compiled
        n_compiled += 1
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend=count, **options))
    for _ in range(2):
        model, batch = model_and_batch("gpt2")
        loss_and_gradients(model, batch, "compiled")
    assert n_compiled == 1


@pytest.mark.slow
@needs_compiler
def test_compiled_on_a_cpu_the_loss_and_its_gradients_are_the_plain_ones():
    model, batch = model_and_batch("gpt2")
    expected = loss_and_gradients(model, batch, "eager")
    assert_close(loss_and_gradients(model, batch, "compiled"), expected, 1e-5)
