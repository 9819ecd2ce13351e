"""The bytes of a pass, counted from the layers, beside the tensors that are alive in one."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tiny_gpt.backends import get_backend
from tiny_gpt.config import ModelConfig, TrainConfig
from tiny_gpt.device import PRECISIONS
from tiny_gpt.model import token_losses
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.lora import add_adapters
from tiny_gpt.planning import activations
from tiny_gpt.planning.activations import PassShape, pass_bytes

WIDE = ModelConfig(n_layer=4, n_head=4, d_model=64, d_ff=256, block_size=32, dropout=0.1)
LONG = ModelConfig(n_layer=4, n_head=4, d_model=32, d_ff=128, block_size=256, dropout=0.1)
TRAIN = TrainConfig(precision="fp32", backend="eager")
ADAPTED = replace(TRAIN, start_from="model.pt", lora="8")


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it, and the most that were alive at once."""

    def __init__(self, others: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in others}

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata)
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def live_bytes(shape: PassShape, n_sequences: int) -> int:
    """The most that a forward and a backward pass of `n_sequences` hold beside the weights."""
    model = GPT(shape.model, shape.vocab_size, PRECISIONS[shape.train.precision]).train()
    model.recomputes = shape.train.recompute
    if rank := shape.train.lora_rank:
        add_adapters(model, rank)
    ids_BT, targets_BT = torch.randint(shape.vocab_size, (2, n_sequences, shape.model.block_size))
    live = LiveTensors([*model.parameters(), *model.buffers(), ids_BT])
    with live:
        get_backend(shape.train.backend).loss(model, ids_BT, targets_BT).backward()
    return live.peak


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", [WIDE, LONG, replace(WIDE, dropout=0.0)])
@pytest.mark.parametrize("train", [TRAIN, replace(TRAIN, recompute=True), ADAPTED, replace(TRAIN, backend="fused")])
def test_the_count_is_what_is_alive(architecture: Any, precision: Any, model: ModelConfig, train: TrainConfig) -> None:
    n_sequences = 512 // model.block_size
    shape = PassShape(
        replace(model, architecture=architecture),
        replace(train, precision=precision),
        40,
        n_sequences * model.block_size,
    )
    assert pass_bytes(shape, holds_gradients=False) == pytest.approx(live_bytes(shape, n_sequences), rel=0.07)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("train", [TRAIN, ADAPTED])
def test_logits_in_chunks(monkeypatch: Any, precision: Any, train: TrainConfig) -> None:
    for module in (activations, token_losses):
        monkeypatch.setattr(module, "LOGITS_PER_PRODUCT", 1 << 17)
    shape = PassShape(replace(WIDE, dropout=0.0), replace(train, precision=precision), 5000, 512)
    assert pass_bytes(shape, holds_gradients=False) == pytest.approx(live_bytes(shape, 16), rel=0.07)
