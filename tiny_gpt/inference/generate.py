"""Text from a model, token by token: prefill the cache with the prompt, then decode one token at a time.

A model sees `block_size` tokens. When the cache is full, the oldest part of it is forgotten and the rest is read
again, because positions are counted from the first token in view.
"""

from collections.abc import Iterator, Sequence

import torch

from tiny_gpt.config import SampleConfig
from tiny_gpt.data.tokenizer import decode_stream
from tiny_gpt.inference.sampling import sample
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.kv_cache import KVCache
from tiny_gpt.model_file import LoadedModel

# Part of a full block that stays in view. Reading it again costs as much as a few single tokens.
KEPT_PART = 3 / 4
# What an empty prompt starts from: the beginning of a line.
START = "\n"


def stream(loaded: LoadedModel, config: SampleConfig, seed: int) -> Iterator[str]:
    """The continuation of `config.prompt`, piece by piece, `config.max_tokens` tokens long."""
    prompt_ids = loaded.tokenizer.encode(config.prompt or START).tolist()
    yield from decode_stream(loaded.tokenizer, generate_ids(loaded.model, prompt_ids, config, seed))


def generate_ids(model: GPT, prompt_ids: Sequence[int], config: SampleConfig, seed: int) -> Iterator[int]:
    """Up to `config.max_tokens` ids that follow `prompt_ids` (at least one; the last block_size of them are seen)."""
    generator = torch.Generator().manual_seed(seed)
    block_size = model.config.block_size
    seen = list(prompt_ids[-block_size:])
    cache, logits_V = prefill(model, seen)
    for n_left in range(config.max_tokens, 0, -1):
        seen.append(sample(logits_V, config, generator))
        yield seen[-1]
        if n_left == 1:
            return
        if cache.length < block_size:
            logits_V = decode_one(model, seen[-1], cache)
        else:
            seen = seen[-max(1, int(block_size * KEPT_PART)) :]
            cache, logits_V = prefill(model, seen)


@torch.inference_mode()
def prefill(model: GPT, ids: Sequence[int]) -> tuple[KVCache, torch.Tensor]:
    """Read all of `ids` (at most block_size) at once: a cache of them, and the logits of the next token."""
    cache = KVCache(model.config, 1, model.device, model.compute_dtype)
    logits_BTV = model(torch.tensor([ids], device=model.device), cache)
    return cache, logits_BTV[0, -1]


@torch.inference_mode()
def decode_one(model: GPT, token_id: int, cache: KVCache) -> torch.Tensor:
    """Read one more token: the logits of the one after it."""
    return model(torch.tensor([[token_id]], device=model.device), cache)[0, -1]
