"""Texts that come and go: each gets the logits that it would get alone, to the bit."""

from typing import Any

import numpy as np
import pytest

from tests.inference.support import BLOCK_SIZE, VOCAB_SIZE, all_architectures, compiled_decoder, random_model
from tiny_gpt.inference.engine import make_batch_decoder
from tiny_gpt.kernels.decoding.batch_decoder import CompiledBatchDecoder
from tiny_gpt.model.gpt import GPT


def batch_decoder(model: GPT, n_texts: int, in_half: bool = False) -> CompiledBatchDecoder:
    decoder = make_batch_decoder(model, n_texts, "fp16" if in_half else "fp32")
    assert isinstance(decoder, CompiledBatchDecoder)
    return decoder


class Alone:
    """What a text gets that is written alone: random tokens, and the logits before each."""

    def __init__(self, model: GPT, prompt: list[int], n_tokens: int, in_half: bool, seed: int) -> None:
        self.prompt, self.tokens = prompt, np.random.default_rng(seed).integers(VOCAB_SIZE, size=n_tokens).tolist()
        decoder = compiled_decoder(model, 1, in_half)
        self.logits = [decoder.read(prompt, n_tokens)]
        self.logits += [decoder.step([token], [0])[0] for token in self.tokens[:-1]]


@all_architectures
@pytest.mark.parametrize("in_half", [False, True])
def test_logits_do_not_depend_on_the_texts_beside(architecture: Any, in_half: bool) -> None:
    model, rng = random_model(architecture), np.random.default_rng(1)
    # From shorter than block_size to several times as long; some begin alike, so that slots are used again.
    texts = []
    for number in range(14):
        prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12][: 1 + number % BLOCK_SIZE]
        if number % 3 == 0:
            prompt = rng.integers(VOCAB_SIZE, size=1 + 2 * number % BLOCK_SIZE).tolist()
        texts.append(Alone(model, prompt, [3, BLOCK_SIZE, 3 * BLOCK_SIZE][number % 3], in_half, number))
    decoder = batch_decoder(model, 3, in_half)
    waiting, running, n_done = list(texts), {}, 0
    while waiting or running:
        while waiting and (number := decoder.add(waiting[0].prompt, len(waiting[0].tokens))) is not None:
            running[number] = (waiting.pop(0), [])
        for number, position, logits_V in decoder.run_pass():
            text, seen = running[number]
            assert position == len(text.prompt) - 1 + len(seen)
            seen.append(logits_V.copy())
            if len(seen) == len(text.logits):
                np.testing.assert_array_equal(seen, text.logits)
                decoder.remove(number)
                del running[number]
                n_done += 1
            else:
                decoder.append(number, text.tokens[len(seen) - 1])
    assert n_done == len(texts)


@all_architectures
def test_forks_share_what_was_read_and_then_go_their_own_ways(architecture: Any) -> None:
    model, prompt = random_model(architecture), list(range(9))
    texts = [Alone(model, prompt, 2 * BLOCK_SIZE, False, seed) for seed in range(3)]
    decoder = batch_decoder(model, 3)
    first = decoder.add(prompt, 2 * BLOCK_SIZE)
    assert first is not None
    ((_, _, logits_V),) = decoder.run_pass()
    numbers = [first, *(decoder.fork(first) for _ in texts[1:])]
    assert decoder.fork(first) is None and None not in numbers
    np.testing.assert_array_equal(logits_V, texts[0].logits[0])
    for step in range(2 * BLOCK_SIZE - 1):
        for number, text in zip(numbers, texts, strict=True):
            decoder.append(number, text.tokens[step])
        found = {number: logits_V for number, _, logits_V in decoder.run_pass()}
        for number, text in zip(numbers, texts, strict=True):
            np.testing.assert_array_equal(found[number], text.logits[step + 1])


def test_all_logits_of_a_prompt_are_those_of_its_beginnings() -> None:
    model, prompt = random_model("qwen3"), list(range(BLOCK_SIZE))
    decoder = batch_decoder(model, 2)
    writing = decoder.add([1, 2, 3], 100)
    assert writing is not None
    decoder.run_pass()
    decoder.append(writing, 4)
    number, found = decoder.add(prompt, 0, all_logits=True), {}
    while len(found) < len(prompt):
        found |= {position: logits_V.copy() for other, position, logits_V in decoder.run_pass() if other == number}
    for position, logits_V in found.items():
        expected = compiled_decoder(model, 1).read(prompt[: position + 1], 0)
        np.testing.assert_array_equal(logits_V, expected)


def test_prompts_are_read_in_parts_beside_texts_that_are_written() -> None:
    model = random_model("gpt2", block_size=200)
    decoder = batch_decoder(model, 2)
    writing = decoder.add([1], 50)
    assert writing is not None
    decoder.run_pass()
    reading, n_passes = decoder.add(list(range(100)), 50), 0
    while True:
        decoder.append(writing, 1)
        numbers = [number for number, *_ in decoder.run_pass()]
        n_passes += 1
        assert writing in numbers
        if reading in numbers:
            break
    assert 5 <= n_passes <= 8


def test_a_removed_text_makes_room_at_once() -> None:
    decoder = batch_decoder(random_model("gpt2"), 1)
    first = decoder.add([1, 2, 3], 100)
    assert first is not None and decoder.add([1], 1) is None
    decoder.remove(first)
    assert decoder.run_pass() == []
    assert decoder.add([1, 2], 100) is not None
