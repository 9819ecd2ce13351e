"""The network against transformers' own classes, its initialization, and what dropout and bf16 may change.

Every parameter of the models below is random, also biases and norm weights, so that none can be left out unnoticed.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tiny_gpt.config import ModelConfig
from tiny_gpt.model.gpt import GPT

Architecture = Literal["gpt2", "qwen3"]
VOCAB_SIZE = 67
LOGITS_BOUND = 2e-5  # five times what was measured; a norm's other epsilon or GELU's other form is far above it
SIZES: dict[str, dict[str, Any]] = {
    "one layer": dict(n_layer=1, n_head=1, d_model=8, d_ff=20, block_size=5),
    "odd numbers": dict(n_layer=3, n_head=3, d_model=18, d_ff=50, block_size=37),
    "guide's heads": dict(n_layer=2, n_head=4, d_model=128, d_ff=512, block_size=96),
}
OF_MODERN: dict[str, Any] = dict(head_dim=10, rope_theta=1e6)  # neither is what it would be without being said

both_architectures = pytest.mark.parametrize("architecture", get_args(Architecture))
all_sizes = pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))


def random_model(config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(0)
    model = GPT(config, VOCAB_SIZE, compute_dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def random_ids(config: ModelConfig, batch_size: int = 3) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (batch_size, config.block_size), generator=torch.Generator().manual_seed(1))


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def stock_model(config: ModelConfig) -> PreTrainedModel:
    """The class of transformers that a model of ours must load into, with weights of its own."""
    settings: dict[str, Any]
    if config.architecture == "gpt2":
        settings = dict(
            vocab_size=VOCAB_SIZE,
            n_positions=config.block_size,
            n_embd=config.d_model,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.d_ff,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
        return GPT2LMHeadModel(GPT2Config(**settings))
    settings = dict(
        vocab_size=VOCAB_SIZE,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_head,
        head_dim=config.dim_per_head,
        max_position_embeddings=config.block_size,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attention_bias=False,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return Qwen3ForCausalLM(Qwen3Config(**settings))


CLASSIC_NAMES = {
    "token_embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "blocks": "transformer.h",
    "norm1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
MODERN_NAMES = {
    "token_embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "norm1": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "norm2": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def as_stock(name: str, value: torch.Tensor, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A weight of ours, or its gradient, under the name and in the layout of transformers."""
    module, kind = name.rsplit(".", 1)
    prefix, inner = "", module
    names = CLASSIC_NAMES if architecture == "gpt2" else MODERN_NAMES
    if module.startswith("blocks."):
        _, layer, inner = module.split(".", 2)
        prefix = f"{names['blocks']}.{layer}."
    if architecture == "qwen3" and inner == "attention.qkv":
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            yield f"{prefix}self_attn.{letter}_proj.{kind}", part
        return
    is_conv1d = architecture == "gpt2" and prefix and value.ndim == 2  # GPT-2 stores (in, out)
    yield f"{prefix}{names[inner]}.{kind}", value.T if is_conv1d else value


def stock_twin(model: GPT) -> PreTrainedModel:
    """transformers' model with the weights of ours; loading is strict, so none is missing and none left over."""
    twin, architecture = stock_model(model.config), model.config.architecture
    weights = model.named_parameters()
    twin.load_state_dict(
        {name: value for ours, weight in weights for name, value in as_stock(ours, weight.detach(), architecture)}
    )
    return twin.eval()


@both_architectures
@all_sizes
def test_logits_equal_those_of_transformers(architecture: Architecture, size: dict[str, Any]) -> None:
    config = ModelConfig(architecture=architecture, dropout=0.0, **size)
    model = random_model(config)
    ids_BT = random_ids(config)
    expected = stock_twin(model)(ids_BT).logits.detach()
    assert expected.std() > 0.1
    with torch.no_grad():
        evaluated = model.eval()(ids_BT)
    trained = model.train()(ids_BT)
    assert (evaluated - expected).abs().max() <= LOGITS_BOUND
    assert (trained - expected).abs().max() <= LOGITS_BOUND


@both_architectures
@all_sizes
def test_loss_and_its_gradients_equal_those_of_transformers(architecture: Architecture, size: dict[str, Any]) -> None:
    config = ModelConfig(architecture=architecture, dropout=0.0, **size)
    model = random_model(config).train()
    twin = stock_twin(model)
    ids_BT = random_ids(config)
    loss = model.losses(ids_BT[:, :-1], ids_BT[:, 1:]).mean()
    expected = twin(ids_BT, labels=ids_BT).loss  # shifts the labels itself
    assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
    loss.backward()
    expected.backward()
    expected_of = {name: gradient_of(parameter) for name, parameter in twin.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in expected_of.values())
    for ours, parameter in model.named_parameters():
        for name, gradient in as_stock(ours, gradient_of(parameter), architecture):
            torch.testing.assert_close(gradient, expected_of[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


@all_sizes
def test_heads_of_any_width_and_other_angles_compute_as_in_transformers(size: dict[str, Any]) -> None:
    config = ModelConfig("qwen3", dropout=0.0, **size | OF_MODERN)
    model = random_model(config)
    ids_BT = random_ids(config)
    with torch.no_grad():
        assert (model(ids_BT) - stock_twin(model)(ids_BT).logits).abs().max() <= LOGITS_BOUND
        otherwise = GPT(ModelConfig("qwen3", dropout=0.0, **size | OF_MODERN | {"rope_theta": 10_000.0}), VOCAB_SIZE)
        otherwise.load_state_dict(model.state_dict())
        assert (model(ids_BT) - otherwise(ids_BT)).abs().max() > 100 * LOGITS_BOUND


@both_architectures
def test_losses_are_the_nats_of_each_target(architecture: Architecture) -> None:
    config = ModelConfig(architecture=architecture, dropout=0.0, **SIZES["odd numbers"])
    model = random_model(config).eval()
    ids_BT = random_ids(config)
    losses_BT = model.losses(ids_BT[:, :-1], ids_BT[:, 1:])
    log_probabilities_BTV = model(ids_BT[:, :-1]).double().log_softmax(-1)
    expected_BT = -log_probabilities_BTV.gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    assert losses_BT.dtype == torch.float32
    torch.testing.assert_close(losses_BT.double(), expected_BT, rtol=1e-5, atol=1e-5)


@both_architectures
def test_no_position_sees_the_future(architecture: Architecture) -> None:
    config = ModelConfig(architecture=architecture, dropout=0.0, **SIZES["odd numbers"])
    model = random_model(config)
    ids_BT = random_ids(config)
    for n_seen in (1, 7, 36):
        changed_BT = ids_BT.clone()
        changed_BT[:, n_seen:] = (changed_BT[:, n_seen:] + 1) % VOCAB_SIZE
        before, after = model(ids_BT), model(changed_BT)
        assert (before[:, :n_seen] - after[:, :n_seen]).abs().max() <= 1e-6
        assert (before[:, n_seen:] - after[:, n_seen:]).abs().max() > 0.1


@both_architectures
def test_bf16_stays_close_to_fp32(architecture: Architecture) -> None:
    """Logits within 3% of their spread (root mean square); every weight's gradient within 6%."""
    config = ModelConfig(architecture=architecture, dropout=0.0, **SIZES["guide's heads"])
    ids_BT = random_ids(config)
    logits, gradients = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = random_model(config, dtype)
        logits[dtype] = model(ids_BT).float().detach()
        model.losses(ids_BT[:, :-1], ids_BT[:, 1:]).mean().backward()
        assert all(parameter.dtype == gradient_of(parameter).dtype == torch.float32 for parameter in model.parameters())
        gradients[dtype] = {name: gradient_of(parameter) for name, parameter in model.named_parameters()}
    difference = logits[torch.bfloat16] - logits[torch.float32]
    assert 0 < difference.square().mean().sqrt() < 0.03 * logits[torch.float32].std()
    for name, expected in gradients[torch.float32].items():
        error = (gradients[torch.bfloat16][name] - expected).norm() / expected.norm()
        assert error < 0.06, name


@both_architectures
def test_initial_weights_are_gpt2s_or_have_the_layers_begin_with_no_output(architecture: Architecture) -> None:
    """gpt2: normal with std 0.02, narrower by sqrt(2 n_layer) where outputs add up in the residual stream.
    qwen3: nothing there and in the head, std 0.5 / sqrt(d_model) in the layers' other matrices."""
    config = ModelConfig(architecture=architecture, **SIZES["guide's heads"])
    torch.manual_seed(0)
    for name, parameter in GPT(config, VOCAB_SIZE).named_parameters():
        (stock_name, value), *_ = as_stock(name, parameter.detach(), architecture)
        if value.ndim == 2:
            std = 0.02
            if stock_name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight")):
                std = 0.02 / math.sqrt(2 * config.n_layer) if architecture == "gpt2" else 0.0
            elif architecture == "qwen3" and stock_name != "model.embed_tokens.weight":
                std = 0.0 if stock_name == "lm_head.weight" else 0.5 / math.sqrt(config.d_model)
            n = parameter.numel()
            assert parameter.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n)), name
            assert abs(parameter.mean().item()) <= 5 * std / math.sqrt(n), name
        else:
            assert (value == (0.0 if name.endswith("bias") else 1.0)).all(), name


@both_architectures
def test_an_untrained_model_has_no_preference(architecture: Architecture) -> None:
    config = ModelConfig(architecture=architecture, **SIZES["guide's heads"])
    torch.manual_seed(0)
    ids_BT = random_ids(config)
    losses_BT = GPT(config, VOCAB_SIZE).eval().losses(ids_BT[:, :-1], ids_BT[:, 1:])
    assert losses_BT.mean().item() == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)


@both_architectures
@all_sizes
def test_n_parameters_counts_like_transformers(architecture: Architecture, size: dict[str, Any]) -> None:
    config = ModelConfig(architecture=architecture, **size)
    with torch.device("meta"):
        assert GPT(config, VOCAB_SIZE).n_parameters == stock_model(config).num_parameters()


@both_architectures
@pytest.mark.parametrize("silenced", ["attention.out", "mlp.down"])
def test_dropout_acts_on_attention_and_feed_forward_in_training_only(architecture: Architecture, silenced: str) -> None:
    """With the one branch silenced, the other still varies in training, and neither does in evaluation."""
    config = ModelConfig(architecture=architecture, dropout=0.5, **SIZES["one layer"])
    model = random_model(config)
    ids_BT = random_ids(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if silenced in name:
                parameter.zero_()
    assert not torch.equal(model.train()(ids_BT), model(ids_BT))
    assert torch.equal(model.eval()(ids_BT), model(ids_BT))
    plain = GPT(ModelConfig(architecture=architecture, dropout=0.0, **SIZES["one layer"]), VOCAB_SIZE)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids_BT), plain(ids_BT))


@both_architectures
def test_gradients_belong_to_the_very_dropout_drawn(architecture: Architecture) -> None:
    """Along each weight's gradient the loss climbs as fast as the gradient is long, same seed each time (1%)."""
    config = ModelConfig(architecture=architecture, dropout=0.3, n_layer=2, n_head=2, d_model=16, d_ff=24, block_size=9)
    model = random_model(config).train()
    ids_BT = random_ids(config, batch_size=4)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        logits_BTV = model(ids_BT[:, :-1]).double()
        return F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())

    loss().backward()
    step, n_tested = 1e-2, 0
    for name, parameter in model.named_parameters():
        gradient = gradient_of(parameter)
        if (length := gradient.norm()) < 1e-3:
            continue
        n_tested += 1
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(gradient / length, alpha=sign * step)
            losses.append(loss().item())
            with torch.no_grad():
                parameter.sub_(gradient / length, alpha=sign * step)
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(length.item(), rel=0.01), name
    assert n_tested > 15
