"""Several models as one: an ensemble that is one ordinary model, with their vectors side by side.

Models of one shape and tokenizer, trained from different initial weights, become one that is as many times as wide. Its
embeddings and its residual stream are theirs, one after the other; its matrices are theirs along the diagonal, zero
elsewhere, so that none reads or writes another's part; it has all their heads. Its logits are the mean of theirs: the
geometric mean of their probabilities, which for language models is nearly as good as the mean (docs/log/stages.md).

Exact but for two things, which cost little. A norm divides the whole stream by its root mean square, not each part by
its own: each part is scaled so that these are about equal (a model with norms before its layers computes the same
whatever the scale of its stream). And all heads of a layer share the norm weights of their queries and keys: they get
the mean of them.

Letters: D width and A attention width of one model, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import nn

from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import can_merge, merged_config


@torch.no_grad()
def merge_models(models: Sequence[GPT], ids_BT: torch.Tensor) -> GPT:
    """`models`, which have one shape and vocabulary, as one; on the CPU, in eval mode. `ids_BT`: some text, on which
    the scales of their streams are measured."""
    config, vocab_size, n = models[0].config, models[0].vocab_size, len(models)
    assert can_merge(config), "models with LayerNorm cannot be merged"
    with torch.random.fork_rng(devices=[]):  # its initial weights, which are replaced, must not change what comes next
        one = GPT(merged_config(config, n), vocab_size, models[0].compute_dtype)
    weights = {name: parameter.detach() for name, parameter in one.named_parameters()}
    for weight in weights.values():
        weight.zero_()
    log_rms = [_mean_log_rms(model, ids_BT) for model in models]
    for i, model in enumerate(models):
        scale = float(torch.exp(sum(log_rms) / n - log_rms[i]))
        for name, parameter in model.named_parameters():
            _insert(weights[name], name, parameter.detach().float().cpu(), i, n, scale)
    return one.eval()


def _insert(whole: torch.Tensor, name: str, weight: torch.Tensor, i: int, n: int, scale: float) -> None:
    """Put a weight of model `i` of `n` into that of the merged one, whose stream has `scale` times as large numbers."""
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        whole += weight / n
        return
    if name == "token_embedding.weight":  # (V, D): parts side by side
        whole.chunk(n, dim=1)[i].copy_(weight * scale)
    elif name == "head.weight":
        whole.chunk(n, dim=1)[i].copy_(weight / n)
    elif name.endswith("qkv.weight"):  # (3 A, D): queries, keys and values, each with the heads of all models
        for part, own in zip(whole.chunk(3), weight.chunk(3), strict=True):
            _block(part, i, n).copy_(own)
    elif weight.ndim == 2:
        writes = name.endswith(("out.weight", "down.weight"))  # to the stream; the others read its norm
        _block(whole, i, n).copy_(weight * scale if writes else weight)
    else:
        whole.chunk(n)[i].copy_(weight)


def _block(matrix: torch.Tensor, i: int, n: int) -> torch.Tensor:
    """Block `i` of `n` on the diagonal."""
    return matrix.chunk(n)[i].chunk(n, dim=1)[i]


def _mean_log_rms(model: GPT, ids_BT: torch.Tensor) -> torch.Tensor:
    """The mean over all norms and tokens of ln(root mean square) of the stream."""
    found: list[torch.Tensor] = []

    def measure(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        found.append(inputs[0].float().square().mean(-1).log().mean().cpu() / 2)

    last_names = ("norm", "norm1", "norm2")
    norms = [module for name, module in model.named_modules() if name.split(".")[-1] in last_names]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        model(ids_BT.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).mean()
