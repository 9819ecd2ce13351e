"""Adapters compared with the plain network, with the chain rule, and with peft."""

import itertools

import pytest
import torch

from tests.model.reference import hf_copy
from tiny_gpt.config import ModelConfig, TrainConfig
from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.lora import ALPHA, AdaptedLinear, add_adapters, is_adapted, merged_weights, with_own_adapters
from tiny_gpt.model.shapes import n_adapter_parameters, n_parameters, n_stacked_matrices
from tiny_gpt.training.optimizer import make_optimizer, trained_weights

RANK, VOCAB_SIZE = 3, 37
SHAPE = dict(n_layer=2, n_head=2, d_model=16, d_ff=24, block_size=12, dropout=0.0)
all_architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


def random_model(architecture, compute_dtype=torch.float32):
    torch.manual_seed(0)
    model = GPT(ModelConfig(architecture, **SHAPE), VOCAB_SIZE, compute_dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def adapted_model(architecture, is_trained=True):
    """A random model with adapters; `is_trained`: B is not zero."""
    model = random_model(architecture)
    add_adapters(model, RANK)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_trained and name.endswith("lora_b"):
                weight.normal_(std=0.05)
    return model


def plain_copy(model):
    plain = GPT(model.config, model.vocab_size)
    plain.load_state_dict(merged_weights(model))
    return plain


def random_ids():
    return torch.randint(VOCAB_SIZE, (3, 12), generator=torch.Generator().manual_seed(1))


@all_architectures
def test_new_adapters_change_nothing(architecture):
    plain, adapted = random_model(architecture), adapted_model(architecture, is_trained=False)
    assert torch.equal(plain(random_ids()), adapted(random_ids()))
    weights = merged_weights(adapted)
    assert all(torch.equal(weights[name], weight) for name, weight in plain.state_dict().items())
    assert weights.keys() == plain.state_dict().keys() and is_adapted(adapted) and not is_adapted(plain)


@all_architectures
def test_merged_weights_compute_the_same(architecture):
    adapted = adapted_model(architecture)
    with torch.no_grad():
        logits, merged = adapted(random_ids()), plain_copy(adapted)(random_ids())
    assert (logits - merged).abs().max() < 1e-5
    assert (logits - random_model(architecture)(random_ids())).abs().max() > 0.1


@all_architectures
def test_only_adapters_of_all_block_matrices_are_trained(architecture):
    model = adapted_model(architecture)
    trained = trained_weights(model)
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b"}
    assert sum(weight.numel() for weight in trained.values()) == n_adapter_parameters(model.config, RANK)
    assert model.n_parameters == n_parameters(model.config, VOCAB_SIZE) + n_adapter_parameters(model.config, RANK)
    n_matrices = sum(weight.ndim == 2 for weight in random_model(architecture).blocks.parameters())
    assert len(trained) == 2 * n_matrices
    moments = make_optimizer(model, TrainConfig()).state
    assert moments.keys() == set(trained.values())


@all_architectures
def test_gradients_follow_from_those_of_the_merged_weights(architecture):
    """With W' = W + s B A: dL/dB = s dL/dW' A^T and dL/dA = s B^T dL/dW'."""
    adapted = adapted_model(architecture)
    plain, ids = plain_copy(adapted), random_ids()
    for model in (adapted, plain):
        model.losses(ids[:, :-1], ids[:, 1:]).mean().backward()
    full = {name: weight.grad for name, weight in plain.named_parameters()}
    modules = {name: module for name, module in adapted.named_modules() if isinstance(module, AdaptedLinear)}
    for name, module in modules.items():
        n = n_stacked_matrices(name)
        gradients, scale = full[f"{name}.weight"].chunk(n), ALPHA / RANK
        for gradient, a, b, a_grad, b_grad in zip(
            gradients,
            module.lora_a.chunk(n),
            module.lora_b,
            module.lora_a.grad.chunk(n),
            module.lora_b.grad,
            strict=True,
        ):
            assert torch.allclose(b_grad, scale * gradient @ a.T, atol=1e-5), name
            assert torch.allclose(a_grad, scale * b.T @ gradient, atol=1e-5), name
    assert len(modules) == 2 * (5 if "mlp.gate" in str(modules.keys()) else 4)


def test_frozen_matrices_are_kept_in_the_compute_dtype():
    plain, adapted = (random_model("llama", torch.bfloat16) for _ in range(2))
    add_adapters(adapted, RANK)
    assert torch.equal(plain(random_ids()), adapted(random_ids()))
    assert adapted.blocks[0].mlp.up.weight.dtype == torch.bfloat16 == adapted.head.weight.dtype
    assert all(weight.dtype == torch.float32 for weight in trained_weights(adapted).values())
    assert all(weight.dtype == torch.float32 for weight in merged_weights(adapted).values())


def test_a_copy_has_its_own_adapters_and_shares_the_rest():
    model = adapted_model("llama")
    copy = with_own_adapters(model)
    for (name, ours), theirs in zip(model.named_parameters(), copy.parameters(), strict=True):
        assert (ours is theirs) == ("lora" not in name) and torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_step_equals_that_of_peft():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    ours = adapted_model("llama")
    names = {"attention.out": "o_proj", "mlp.gate": "gate_proj", "mlp.up": "up_proj", "mlp.down": "down_proj"}
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", *names.values()]
    )
    theirs = peft.get_peft_model(hf_copy(random_model("llama")), config).train()
    layers = theirs.base_model.model.model.layers
    for block, layer in zip(ours.blocks, layers, strict=True):
        pairs = [
            (block.get_submodule(our), f"self_attn.{name}" if "att" in our else f"mlp.{name}", 0)
            for our, name in names.items()
        ]
        pairs += [(block.attention.qkv, f"self_attn.{name}_proj", index) for index, name in enumerate("qkv")]
        for module, name, index in pairs:
            adapter = layer.get_submodule(name)
            with torch.no_grad():
                adapter.lora_A["default"].weight.copy_(module.lora_a.chunk(module.n_stacked)[index])
                adapter.lora_B["default"].weight.copy_(module.lora_b[index])
    ids = random_ids()
    assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-5
    train = TrainConfig(learning_rate=1e-2, weight_decay=0.1)
    optimizer = make_optimizer(ours, train)
    trainable = [weight for weight in theirs.parameters() if weight.requires_grad]
    reference = torch.optim.AdamW(trainable, lr=1e-2, betas=(0.9, train.beta2), weight_decay=0.1)
    for _ in range(3):
        loss = ours.losses(ids[:, :-1], ids[:, 1:]).mean()
        their_loss = torch.nn.functional.cross_entropy(theirs(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        assert loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
        for each, step in itertools.zip_longest((loss, their_loss), (optimizer, reference)):
            step.zero_grad()
            each.backward()
            step.step()
    merged = theirs.merge_and_unload()
    with torch.no_grad():
        assert (plain_copy(ours)(ids) - merged(ids).logits).abs().max() < 1e-4
