"""Sampling against transformers' warpers and brute force; decoding with the cache against the model without it."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tiny_gpt.config import ModelConfig, SampleConfig
from tiny_gpt.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from tiny_gpt.inference.generate import decode_one, generate_ids, prefill, stream
from tiny_gpt.inference.sampling import keep_top_k, keep_top_p, sample
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_file import LoadedModel, Progress

VOCAB_SIZE = 256
BLOCK_SIZE = 12
GREEDY = SampleConfig(temperature=0.0)
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

both_architectures = pytest.mark.parametrize("architecture", ["classic", "modern"])


def random_model(architecture: Any, block_size: int = BLOCK_SIZE) -> GPT:
    torch.manual_seed(0)
    config = ModelConfig(architecture, n_layer=2, n_head=2, d_model=16, d_ff=32, block_size=block_size, dropout=0.5)
    model = GPT(config, VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def logits_after(model: GPT, ids: Iterable[int]) -> torch.Tensor:
    """Of the next token, computed anew over all of `ids`, without a cache."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]))[0, -1]


def loaded(model: GPT, tokenizer: Tokenizer | None = None) -> LoadedModel:
    return LoadedModel(model, tokenizer or ByteTokenizer(), Progress(0, 0, 0.0, 0.0, 0.0), {})


# --- sampling ---


def distribution(logits_V: torch.Tensor, config: SampleConfig) -> torch.Tensor:
    """Probabilities that transformers would draw the next id from."""
    scores_BV = TemperatureLogitsWarper(config.temperature)(None, logits_V[None])
    if config.top_k:
        scores_BV = TopKLogitsWarper(config.top_k)(None, scores_BV)
    if config.top_p < 1:
        scores_BV = TopPLogitsWarper(config.top_p)(None, scores_BV)
    return scores_BV[0].softmax(-1)


@pytest.mark.parametrize("k", [1, 2, 7, 255, 256, 1000])
def test_top_k_keeps_what_transformers_keeps(k: int) -> None:
    logits_V = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(k))
    expected = distribution(logits_V, SampleConfig(temperature=1.0, top_k=k))
    assert (expected > 0).sum() == min(k, VOCAB_SIZE)
    torch.testing.assert_close(keep_top_k(logits_V, k).softmax(-1), expected)
    assert torch.equal(keep_top_k(logits_V, 0), logits_V)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_top_p_keeps_what_transformers_and_brute_force_keep(p: float, scale: float) -> None:
    logits_V = scale * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(int(1000 * p)))
    probabilities_V = logits_V.softmax(-1)
    kept_V = keep_top_p(probabilities_V, p)
    torch.testing.assert_close(kept_V / kept_V.sum(), distribution(logits_V, SampleConfig(temperature=1.0, top_p=p)))
    ordered = sorted(probabilities_V.tolist(), reverse=True)
    fewest = next(n for n in range(1, VOCAB_SIZE + 1) if math.fsum(ordered[:n]) >= p)
    assert sorted(kept_V[kept_V > 0].tolist(), reverse=True) == ordered[:fewest]
    assert torch.equal(keep_top_p(probabilities_V, 1.0), probabilities_V)


@pytest.mark.parametrize(
    "settings",
    [dict(temperature=1.0), dict(temperature=0.5, top_k=4), dict(temperature=2.0, top_p=0.7), dict(top_k=6, top_p=0.8)],
    ids=str,
)
def test_ids_are_drawn_as_often_as_transformers_would(settings: dict[str, Any]) -> None:
    """Pearson's chi-squared: beyond the bound once in a million seeds (Wilson-Hilferty)."""
    config, n_draws = SampleConfig(**settings), 4000
    logits_V = torch.tensor([0.3, -1.0, 1.5, 0.0, 2.0, -0.5, 1.2, 0.9])
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(
        torch.tensor([sample(logits_V, config, generator) for _ in range(n_draws)]), minlength=len(logits_V)
    )
    expected = n_draws * distribution(logits_V, config)
    assert (counts[expected == 0] == 0).all()
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    assert ((counts - expected) ** 2 / expected).sum().item() < bound


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-40, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_at_and_near_temperature_zero_the_likeliest_id_is_taken(temperature: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits_V = torch.randperm(64, generator=generator).to(dtype) / 4
        assert sample(logits_V, SampleConfig(temperature=temperature), generator) == logits_V.argmax()


# --- cache ---


@both_architectures
@pytest.mark.parametrize("n_read", [1, 5, BLOCK_SIZE])
def test_cached_logits_equal_uncached_ones_up_to_the_full_block(architecture: str, n_read: int) -> None:
    model = random_model(architecture)
    ids = torch.randint(VOCAB_SIZE, (BLOCK_SIZE,), generator=torch.Generator().manual_seed(2)).tolist()
    cache, logits_V = prefill(model, ids[:n_read])
    for n_seen in range(n_read, BLOCK_SIZE + 1):
        if n_seen > n_read:
            logits_V = decode_one(model, ids[n_seen - 1], cache)
        assert cache.length == n_seen
        assert (logits_V - logits_after(model, ids[:n_seen])).abs().max() <= 1e-4


# --- generation ---


@both_architectures
def test_temperature_zero_follows_the_uncached_model_within_and_beyond_the_block(architecture: str) -> None:
    """Beyond the block, the likeliest token after some last part of the text, at least half a block long."""
    model = random_model(architecture)
    text = [65, 66, 67]
    for token in generate_ids(model, text, replace(GREEDY, max_tokens=4 * BLOCK_SIZE), seed=0):
        in_view = [len(text)] if len(text) <= BLOCK_SIZE else range(BLOCK_SIZE // 2, BLOCK_SIZE + 1)
        assert any(token == logits_after(model, text[-n:]).argmax() for n in in_view)
        text.append(token)
    assert len(set(text)) > 5, "a model that repeats itself proves nothing"


@both_architectures
@pytest.mark.parametrize("block_size", [1, 2, 3, BLOCK_SIZE])
def test_writes_as_many_tokens_as_asked_for(architecture: str, block_size: int) -> None:
    model = random_model(architecture, block_size)
    for max_tokens in (1, block_size, block_size + 1, 3 * block_size):
        ids = list(generate_ids(model, [65, 66], replace(GREEDY, temperature=1.0, max_tokens=max_tokens), seed=0))
        assert len(ids) == max_tokens and all(0 <= i < VOCAB_SIZE for i in ids)


@both_architectures
def test_same_seed_writes_the_same_and_another_seed_something_else(architecture: str) -> None:
    model = loaded(random_model(architecture))
    config = SampleConfig(prompt="A", max_tokens=30)
    first, again, other = ("".join(stream(model, config, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_writing_does_not_touch_torchs_own_generator() -> None:
    model = random_model("classic")
    state = torch.get_rng_state()
    list(generate_ids(model, [65], SampleConfig(max_tokens=20), seed=0))
    assert torch.equal(torch.get_rng_state(), state)


@both_architectures
def test_of_a_prompt_longer_than_the_block_its_end_is_read(architecture: str) -> None:
    model = random_model(architecture)
    prompt = torch.randint(VOCAB_SIZE, (5 * BLOCK_SIZE,), generator=torch.Generator().manual_seed(4)).tolist()
    whole, end = (list(generate_ids(model, ids, GREEDY, seed=0)) for ids in (prompt, prompt[-BLOCK_SIZE:]))
    assert whole == end
    assert whole[0] == logits_after(model, prompt[-BLOCK_SIZE:]).argmax()


@pytest.mark.parametrize("prompt", ["", "A", "naïve 🙂 \ud800 日本", "x" * 100])
def test_any_prompt_can_be_continued(prompt: str) -> None:
    text = "".join(stream(loaded(random_model("classic")), SampleConfig(prompt=prompt, max_tokens=5), seed=0))
    assert 1 <= len(text) <= 5


def reciting_model(ids: list[int]) -> GPT:
    """A model that was made to say, after each of `ids` (all different), the next, and after the last the first."""
    model = random_model("classic")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks") or name.endswith("bias") or name.startswith("position"):
                parameter.zero_()
            elif name.startswith("norm"):
                parameter.fill_(1.0)
        model.token_embedding.weight.copy_(torch.randn(VOCAB_SIZE, 16))
        model.head.weight.zero_()
        for now, following in itertools.pairwise([*ids, ids[0]]):
            model.head.weight[following] = F.layer_norm(model.token_embedding.weight[now], (16,))
    return model


def test_characters_of_many_bytes_are_streamed_when_whole() -> None:
    text = "é日🙂!"
    model = loaded(reciting_model(list(text.encode())))
    config = replace(GREEDY, prompt="!", max_tokens=2 * len(text.encode()))
    assert list(stream(model, config, seed=0)) == [*text, *text]


def test_a_character_cut_off_by_the_end_becomes_one_replacement_character() -> None:
    text = "é日🙂!"
    model = loaded(reciting_model(list(text.encode())))
    config = replace(GREEDY, prompt="!", max_tokens=len("é日".encode()) + 3)
    assert "".join(stream(model, config, seed=0)) == "é日" + UNKNOWN


def test_pieces_come_while_the_model_still_writes() -> None:
    """The char tokenizer's own characters, one token each, with a model that would write for days."""
    tokenizer = CharTokenizer()
    pieces = stream(loaded(random_model("classic"), tokenizer), replace(GREEDY, max_tokens=10**9), seed=0)
    assert len("".join(itertools.islice(pieces, 5))) >= 5
