"""With `recomputes`, the backward pass computes each layer again: the same gradients from fewer kept tensors."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support import MODEL, VOCAB_SIZE, random_model
from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.planning.autotune import backend_candidates
from tiny_gpt.planning.memory import estimate_memory_bytes

CPU = torch.device("cpu")


def gradients_and_kept_bytes(architecture: Any, recomputes: bool) -> tuple[list[torch.Tensor], int]:
    """Of a model with dropout, after one backward pass; and the bytes that were kept for it, weights left out."""
    model = random_model(replace(MODEL, architecture=architecture, n_layer=6, dropout=0.3)).train()
    model.recomputes = recomputes
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids_BT, targets_BT = torch.randint(VOCAB_SIZE, (2, 4, MODEL.block_size), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Inside a layer that is recomputed, the hooks of the checkpoint come before these.
        loss = model.losses(ids_BT, targets_BT).mean()
    loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], sum(kept.values())


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_gradients_are_the_same_to_the_bit_and_less_is_kept(architecture: Any) -> None:
    kept, kept_bytes = gradients_and_kept_bytes(architecture, recomputes=False)
    recomputed, recomputed_bytes = gradients_and_kept_bytes(architecture, recomputes=True)
    assert len(kept) == len(recomputed) > 0
    assert all(torch.equal(*pair) for pair in zip(kept, recomputed, strict=True))
    assert recomputed_bytes < kept_bytes / 2


def test_a_plan_knows_that_less_memory_is_needed() -> None:
    config = RunConfig(replace(MODEL, n_layer=12, d_model=768, d_ff=3072, block_size=512), train=TrainConfig())
    recomputed = replace(config, train=replace(config.train, recompute=True))
    assert estimate_memory_bytes(recomputed, 256, CPU) < estimate_memory_bytes(config, 256, CPU) / 2


def test_backends_that_cannot_recompute_are_left_out_or_refused() -> None:
    config = RunConfig(train=TrainConfig(recompute=True))
    assert {candidate.backend for candidate in backend_candidates(config, CPU)} == {"eager"}
    with pytest.raises(UsageError) as refused:
        backend_candidates(replace(config, train=replace(config.train, backend="fused")), CPU)
    assert refused.value.code == "backend-unsuitable"
