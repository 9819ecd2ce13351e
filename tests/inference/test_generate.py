"""Sampling against transformers' warpers and brute force; decoding against the model without a cache."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.inference.support import (
    BLOCK_SIZE,
    LOGITS_BOUND,
    VOCAB_SIZE,
    all_architectures,
    compiled_decoder,
    logits_after,
    random_model,
)
from tiny_gpt.config import SampleConfig
from tiny_gpt.inference.engine import Engine, engine_for
from tiny_gpt.inference.generate import stream, write
from tiny_gpt.inference.prompts import fitting_prompt
from tiny_gpt.inference.sampling import keep_min_p, keep_top_k, keep_top_p, penalize, sample
from tiny_gpt.inference.torch_decoder import TorchDecoder
from tiny_gpt.kernels.decoding.decoder import MAX_ROWS
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.tokenizer.base import ByteTokenizer, CharTokenizer, Tokenizer
from tiny_gpt.tokenizer.bpe import BpeTokenizer

GREEDY = SampleConfig(temperature=0.0)
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def writer(model: GPT, tokenizer: Tokenizer | None = None) -> Engine:
    return engine_for(LoadedModel(model, tokenizer or ByteTokenizer(), Progress(0, 0, 0.0, 0.0, 0.0), {}))


# --- sampling ---


def distribution(logits_V: NDArray[np.float32], config: SampleConfig, seen: Iterable[int] = ()) -> NDArray[np.float64]:
    """Probabilities that transformers would draw the next id from."""
    ids_BT, scores_BV = torch.tensor([list(seen)], dtype=torch.long), torch.from_numpy(logits_V)[None].double()
    if config.repetition_penalty != 1:
        scores_BV = RepetitionPenaltyLogitsProcessor(config.repetition_penalty)(ids_BT, scores_BV)
    scores_BV = TemperatureLogitsWarper(config.temperature)(None, scores_BV)
    if config.top_k:
        scores_BV = TopKLogitsWarper(config.top_k)(None, scores_BV)
    if config.top_p < 1:
        scores_BV = TopPLogitsWarper(config.top_p)(None, scores_BV)
    if config.min_p > 0:
        scores_BV = MinPLogitsWarper(config.min_p)(None, scores_BV)
    probabilities: NDArray[np.float64] = scores_BV[0].softmax(-1).numpy()
    return probabilities


def random_logits(seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal(VOCAB_SIZE)).astype(np.float32)


def softmax(logits_V: NDArray[np.float32]) -> NDArray[np.float64]:
    weights_V = np.exp(logits_V.astype(np.float64))
    shares_V: NDArray[np.float64] = weights_V / weights_V.sum()
    return shares_V


@pytest.mark.parametrize("k", [1, 2, 7, 255, 256, 1000])
def test_top_k_keeps_what_transformers_keeps(k: int) -> None:
    logits_V = random_logits(k)
    expected = distribution(logits_V, SampleConfig(temperature=1.0, top_k=k))
    kept_V = keep_top_k(softmax(logits_V), k)
    assert (expected > 0).sum() == min(k, VOCAB_SIZE)
    np.testing.assert_allclose(kept_V / kept_V.sum(), expected)
    np.testing.assert_array_equal(keep_top_k(softmax(logits_V), 0), softmax(logits_V))


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_top_p_keeps_what_transformers_and_brute_force_keep(p: float, scale: float) -> None:
    logits_V = random_logits(int(1000 * p), scale)
    shares_V = softmax(logits_V)
    kept_V = keep_top_p(shares_V, p)
    np.testing.assert_allclose(kept_V / kept_V.sum(), distribution(logits_V, SampleConfig(temperature=1.0, top_p=p)))
    ordered = sorted(shares_V.tolist(), reverse=True)
    fewest = next(n for n in range(1, VOCAB_SIZE + 1) if math.fsum(ordered[:n]) >= p)
    assert sorted(kept_V[kept_V > 0].tolist(), reverse=True) == ordered[:fewest]
    np.testing.assert_array_equal(keep_top_p(shares_V, 1.0), shares_V)


@pytest.mark.parametrize("p", [1e-6, 0.05, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(p: float) -> None:
    logits_V = random_logits(int(1000 * p), 3.0)
    kept_V = keep_min_p(softmax(logits_V), p)
    np.testing.assert_allclose(kept_V / kept_V.sum(), distribution(logits_V, SampleConfig(temperature=1.0, min_p=p)))
    np.testing.assert_array_equal(keep_min_p(softmax(logits_V), 0.0), softmax(logits_V))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits_V, seen = random_logits(3), [1, 1, 7, 200]
    penalized = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor([seen]), torch.from_numpy(logits_V)[None].clone()
    )
    before = logits_V.copy()
    np.testing.assert_allclose(penalize(logits_V, seen, penalty), penalized[0].numpy(), rtol=1e-6)
    np.testing.assert_array_equal(logits_V, before)


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1.0),
        dict(temperature=0.5, top_k=4),
        dict(temperature=2.0, top_p=0.7),
        dict(top_k=6, top_p=0.8),
        dict(temperature=1.5, min_p=0.2, repetition_penalty=1.5),
        dict(temperature=1.2, top_k=7, top_p=0.95, min_p=0.05, repetition_penalty=0.7),
    ],
    ids=str,
)
def test_ids_are_drawn_as_often_as_transformers_would(settings: dict[str, Any]) -> None:
    """Pearson's chi-squared: beyond the bound once in a million seeds (Wilson-Hilferty)."""
    config, n_draws, seen = SampleConfig(**settings), 4000, [2, 5]
    logits_V = np.array([0.3, -1.0, 1.5, 0.0, 2.0, -0.5, 1.2, 0.9], dtype=np.float32)
    generator = np.random.default_rng(0)
    drawn = [sample(logits_V, config, seen, generator) for _ in range(n_draws)]
    counts, expected = np.bincount(drawn, minlength=len(logits_V)), n_draws * distribution(logits_V, config, seen)
    assert (counts[expected == 0] == 0).all()
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    assert ((counts - expected) ** 2 / expected).sum() < bound


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-40, 1e-9])
def test_at_and_near_temperature_zero_the_likeliest_id_is_taken(temperature: float) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        logits_V = (generator.permutation(64) / 4).astype(np.float32)
        assert sample(logits_V, SampleConfig(temperature=temperature), [], generator) == logits_V.argmax()


class _Highest:
    """A generator whose every number is the highest that one can draw."""

    def random(self) -> float:
        return 1.0 - 2.0**-53


def test_the_highest_random_number_draws_a_token_that_was_not_ruled_out() -> None:
    for seed in range(200):
        logits_V = random_logits(seed)
        logits_V[-5:] = -30.0
        drawn = sample(logits_V, SampleConfig(top_k=VOCAB_SIZE - 5), [], _Highest())  # type: ignore[arg-type]
        assert drawn < VOCAB_SIZE - 5


# --- decoding ---


@all_architectures
@pytest.mark.parametrize("kind", [compiled_decoder, TorchDecoder])
@pytest.mark.parametrize("n_read", [1, 5, BLOCK_SIZE])
def test_cached_logits_equal_uncached_ones_up_to_the_full_window(architecture: str, kind: Any, n_read: int) -> None:
    model = random_model(architecture)
    ids = torch.randint(VOCAB_SIZE, (BLOCK_SIZE,), generator=torch.Generator().manual_seed(2)).tolist()
    decoder = kind(model, 1)
    logits_V = decoder.read(ids[:n_read], BLOCK_SIZE)
    for n_seen in range(n_read, BLOCK_SIZE + 1):
        if n_seen > n_read:
            logits_V = decoder.step([ids[n_seen - 1]], [0])[0]
        assert np.abs(logits_V - logits_after(model, ids[:n_seen]).numpy()).max() <= LOGITS_BOUND


@all_architectures
@pytest.mark.parametrize("block_size", [1, 2, 3, BLOCK_SIZE, MAX_ROWS + 9])
@pytest.mark.parametrize("kind", [compiled_decoder, TorchDecoder])
def test_beyond_the_block_the_last_half_of_it_at_least_is_in_view(
    architecture: str, block_size: int, kind: Any
) -> None:
    """The windows begin half of block_size apart; each text of a batch has its own, and some end early."""
    model, n_texts = random_model(architecture, block_size), 3
    generator = np.random.default_rng(block_size)
    decoder = kind(model, n_texts)
    for n_prompt in (1, block_size, 3 * block_size):
        prompt = generator.integers(VOCAB_SIZE, size=n_prompt).tolist()
        n_ahead = 2 * block_size + 3 if n_prompt > 1 else block_size - 1
        logits_V = decoder.read(prompt, n_ahead)
        texts = [prompt[-block_size:] for _ in range(n_texts)]
        assert np.abs(logits_V - logits_after(model, texts[0]).numpy()).max() <= LOGITS_BOUND
        for n_steps in range(n_ahead):
            growing = [0, 1, 2] if n_steps < block_size else [0, 2]
            ids = generator.integers(VOCAB_SIZE, size=len(growing)).tolist()
            rows = decoder.step(ids, growing)
            for text, token, row_V in zip(growing, ids, rows, strict=True):
                if len(texts[text]) == block_size:
                    texts[text] = texts[text][(block_size + 1) // 2 :]
                texts[text] = [*texts[text], token]
                assert np.abs(row_V - logits_after(model, texts[text]).numpy()).max() <= LOGITS_BOUND


# --- generation ---


def written(model: GPT, prompt: str, config: SampleConfig) -> list[int]:
    """The ids that follow a prompt of ASCII."""
    (text,) = list(write(writer(model), replace(config, prompt=prompt), [0]))[-1]
    return text.ids[-text.n_tokens :]


@all_architectures
def test_temperature_zero_follows_the_uncached_model_within_and_beyond_the_window(architecture: str) -> None:
    """Beyond the window, the likeliest token after some last part of the text, at least half a window long."""
    model = random_model(architecture)
    text = [65, 66, 67]
    for token in written(model, bytes(text).decode(), replace(GREEDY, max_tokens=4 * BLOCK_SIZE)):
        in_view = [len(text)] if len(text) <= BLOCK_SIZE else range(BLOCK_SIZE // 2, BLOCK_SIZE + 1)
        assert any(token == logits_after(model, text[-n:]).argmax() for n in in_view)
        text.append(token)
    assert len(set(text)) > 5, "a model that repeats itself proves nothing"


@all_architectures
@pytest.mark.parametrize("block_size", [1, 2, 3, BLOCK_SIZE])
def test_writes_as_many_tokens_as_asked_for(architecture: str, block_size: int) -> None:
    model = random_model(architecture, block_size)
    for max_tokens in (1, block_size, block_size + 1, 3 * block_size):
        ids = written(model, "AB", replace(GREEDY, temperature=1.0, max_tokens=max_tokens))
        assert len(ids) == max_tokens and all(0 <= i < VOCAB_SIZE for i in ids)


@all_architectures
def test_same_seed_writes_the_same_and_another_seed_something_else(architecture: str) -> None:
    model = writer(random_model(architecture))
    config = SampleConfig(prompt="A", max_tokens=30)
    first, again, other = ("".join(stream(model, config, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_writing_does_not_touch_torchs_own_generator() -> None:
    model = random_model("gpt2")
    state = torch.get_rng_state()
    written(model, "A", SampleConfig(max_tokens=20))
    assert torch.equal(torch.get_rng_state(), state)


@all_architectures
def test_of_a_prompt_longer_than_the_block_its_end_is_read(architecture: str) -> None:
    model = random_model(architecture)
    prompt = "".join(map(chr, np.random.default_rng(4).integers(128, size=5 * BLOCK_SIZE)))
    whole, end = (written(model, text, GREEDY) for text in (prompt, prompt[-BLOCK_SIZE:]))
    assert whole == end
    assert whole[0] == logits_after(model, prompt[-BLOCK_SIZE:].encode()).argmax()


@all_architectures
def test_a_text_depends_on_its_own_seed_only(architecture: str) -> None:
    model = writer(random_model(architecture))
    config = SampleConfig(prompt="A", max_tokens=4 * BLOCK_SIZE, temperature=1.0, stop=("q",))
    together = [text.text for text in list(write(model, config, range(5, 14)))[-1]]
    assert together == ["".join(stream(model, config, seed)) for seed in range(5, 14)]
    assert len(set(together)) > 5


@pytest.mark.parametrize(
    ("stop", "expected", "stopped"),
    [
        ((), "bcdefgabcdef", False),
        (("fga",), "bcde", True),
        (("gab", "ef"), "bcd", True),
        (("b",), "", True),
        (("cdx", "fgx"), "bcdefgabcdef", False),
        (("efa", "defg"), "bc", True),
        (("f" * 50,), "bcdefgabcdef", False),
    ],
)
def test_a_stop_text_ends_the_writing_and_is_left_out(stop: tuple[str, ...], expected: str, stopped: bool) -> None:
    model = writer(reciting_model(list(b"abcdefg")))
    config = replace(GREEDY, prompt="a", max_tokens=12, stop=stop)
    pieces = list(stream(model, config, seed=0))
    assert "".join(pieces) == expected
    (text,) = list(write(model, config, [0]))[-1]
    assert (text.text, text.is_stopped) == (expected, stopped)


def test_what_may_begin_a_stop_text_is_held_back_no_longer_than_needed() -> None:
    model = writer(reciting_model(list(b"abcdefg")))
    config = replace(GREEDY, prompt="a", max_tokens=7, stop=("cdx",))
    assert list(stream(model, config, seed=0)) == ["b", "cde", "f", "g", "a"]


@pytest.mark.parametrize("prompt", ["", "A", "naïve 🙂 \ud800 日本", "x" * 100])
def test_any_prompt_can_be_continued(prompt: str) -> None:
    text = "".join(stream(writer(random_model("gpt2")), SampleConfig(prompt=prompt, max_tokens=5), seed=0))
    assert 1 <= len(text) <= 5


def reciting_model(ids: list[int]) -> GPT:
    """A model that was made to say, after each of `ids` (all different), the next, and after the last the first."""
    model = random_model("gpt2")
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
    model = writer(reciting_model(list(text.encode())))
    config = replace(GREEDY, prompt="!", max_tokens=2 * len(text.encode()))
    assert list(stream(model, config, seed=0)) == [*text, *text]


def test_a_character_cut_off_by_the_end_becomes_one_replacement_character() -> None:
    text = "é日🙂!"
    model = writer(reciting_model(list(text.encode())))
    config = replace(GREEDY, prompt="!", max_tokens=len("é日".encode()) + 3)
    assert "".join(stream(model, config, seed=0)) == "é日" + UNKNOWN


def test_pieces_come_while_the_model_still_writes() -> None:
    """The char tokenizer's own characters, one token each, with a model that would write for days."""
    tokenizer = CharTokenizer()
    pieces = stream(writer(random_model("gpt2"), tokenizer), replace(GREEDY, max_tokens=10**9), seed=0)
    assert len("".join(itertools.islice(pieces, 5))) >= 5


# --- prompts ---


class Recorder:
    """A decoder that records the prompt, and wants the tokens of a script in turn."""

    def __init__(self, vocab_size: int, wanted: list[int]) -> None:
        self.prompt_ids: list[int] = []
        self._vocab_size, self._wanted = vocab_size, iter(wanted)

    def read(self, ids: list[int], n_more: int) -> NDArray[np.float32]:
        self.prompt_ids = list(ids)
        return self._logits()

    def step(self, ids: list[int], rows: list[int]) -> NDArray[np.float32]:
        return np.stack([self._logits() for _ in rows])

    def _logits(self) -> NDArray[np.float32]:
        logits_V = np.zeros(self._vocab_size, dtype=np.float32)
        logits_V[next(self._wanted)] = 9
        logits_V[:8] = 5  # the second choice: some byte
        return logits_V


TALE = "The lobster saw the other lobster, and the lobster went to the sea.\n" * 9


def written_by(tokenizer: Tokenizer, prompt: str, wanted: list[int], **settings: Any) -> tuple[str, list[int]]:
    """(text, the ids that the decoder read) for a model that wants certain tokens."""
    recorder = Recorder(tokenizer.vocab_size, wanted)
    engine = replace(writer(random_model("gpt2")), tokenizer=tokenizer)
    config = replace(GREEDY, prompt=prompt, max_tokens=len(wanted), **settings)
    (text,) = list(write(engine, config, [0], recorder))[-1]  # type: ignore[arg-type]
    return text.text, recorder.prompt_ids


def test_blank_at_the_end_of_a_prompt_is_written_anew_with_the_next_word() -> None:
    bpe = BpeTokenizer.train([TALE], 300)
    (word,) = bpe.encode(" lobster").tolist()
    text, read = written_by(bpe, "saw the ", [word, word])
    assert read == bpe.encode("saw the").tolist() and text == "lobster lobster"
    text, read = written_by(bpe, "saw the", [word, word])
    assert read == bpe.encode("saw the").tolist() and text == " lobster lobster"
    comma = bpe.encode(",").tolist()
    text, _ = written_by(bpe, "saw the ", [*comma, word])  # does not fit: the likeliest token that does comes first
    assert not text.startswith(",")


def test_blank_stays_where_no_token_goes_on_from_it() -> None:
    text, read = written_by(ByteTokenizer(), "saw the ", [ord("l"), ord("o")])
    assert read == list(b"saw the ") and text == "lo"


def test_prompt_and_stop_are_treated_as_the_text_was() -> None:
    bpe = BpeTokenizer.train([TALE], 300)
    _, read = written_by(bpe, "\ufeffthe sea.\r\nThe", [0])
    assert read == bpe.encode("the sea.\nThe").tolist()
    newline = bpe.encode("\n").tolist()
    text, _ = written_by(bpe, "the", [*bpe.encode(" sea.").tolist(), *newline, *newline], stop=("\r\n",))
    assert text == " sea."


def test_default_prompt_is_left_out_where_the_text_has_no_such_word() -> None:
    chinese = BpeTokenizer.train(["猫坐在垫子上。" * 50], 300)
    assert fitting_prompt(SampleConfig(), chinese).prompt == ""
    assert fitting_prompt(SampleConfig(prompt="猫"), chinese).prompt == "猫"
    assert fitting_prompt(SampleConfig(), BpeTokenizer.train([TALE], 300)).prompt == "The"


def test_token_that_ends_a_text_elsewhere_ends_it_here() -> None:
    library = tokenizers.Tokenizer.from_str(BpeTokenizer.train([TALE], 300).to_dict()["tokenizer_json"])
    library.add_special_tokens(["<|endoftext|>"])
    bpe = BpeTokenizer.from_dict({"tokenizer_json": library.to_str()})
    (end,) = bpe.end_ids
    text, _ = written_by(bpe, "the", [*bpe.encode(" sea").tolist(), end, end])
    assert text == " sea"
