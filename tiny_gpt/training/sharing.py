"""What one rank trains: a whole copy of the model or, with --shard, its part of it; with the optimizer over that."""

from typing import TYPE_CHECKING, NamedTuple

import torch

from tiny_gpt.config import TrainConfig
from tiny_gpt.device import return_freed_memory
from tiny_gpt.distributed.gradients import GradientSum, make_gradient_sum
from tiny_gpt.distributed.ranks import Ranks
from tiny_gpt.model.gpt import GPT, rope_table
from tiny_gpt.training.optimizer import make_optimizer

if TYPE_CHECKING:  # they import FSDP, which takes a second
    from tiny_gpt.distributed.shards import ShardedGradients, Shards


class OwnPart(NamedTuple):
    """What a rank has of a model in training."""

    model: GPT
    optimizer: torch.optim.Optimizer
    gradient_sum: "GradientSum | ShardedGradients | None"
    """None with one rank, where autograd's own accumulation is enough."""
    shards: "Shards | None" = None
    """The rows of the weights that this rank has; None where it has the whole model."""


def own_part(model: GPT, config: TrainConfig, ranks: Ranks, device: torch.device) -> OwnPart:
    """This rank's part of `model`, for training on `device`.

    A sharded one has no values yet: run/sharded_state.py sets them. `model` may then be on the meta device.
    """
    is_sparing = config.recompute or is_sharded(config, ranks)
    if device.type == "cpu" and is_sparing:
        return_freed_memory()
    if not is_sharded(config, ranks):
        return OwnPart(model, make_optimizer(model, config, ranks), make_gradient_sum(model, ranks, config.exact))
    from tiny_gpt.distributed.shards import ShardedGradients, Shards

    part = empty_model(model)
    part.is_sharded = True
    shards = Shards(part, part.blocks, ranks, device, part.compute_dtype)
    if part.config.traits.positions == "rotary":  # not a weight, so each rank computes it
        for buffer, table in zip((part.rope_cos_TK, part.rope_sin_TK), rope_table(part.config), strict=True):
            buffer.copy_(table)
    optimizer = make_optimizer(part, config, ranks, shards)
    return OwnPart(part.train(), optimizer, ShardedGradients(part, shards), shards)


def is_sharded(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether each rank has a part of the model only; one rank alone has all of it."""
    return config.shard and not ranks.is_alone


def empty_model(like: GPT) -> GPT:
    """A model of the same shape, on the meta device: it takes neither memory nor random numbers."""
    with torch.device("meta"):
        model = GPT(like.config, like.vocab_size, like.compute_dtype)
    model.recomputes = like.recomputes
    return model
