"""Tokens for the page, against `generate`, `load` and brute force."""

import math

import numpy as np
import pytest
import torch

import tiny_gpt
from tests.support import random_model, random_tokens
from tiny_gpt.config import RunConfig, SampleConfig
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.play.snapshots import MAIN, take_decoder
from tiny_gpt.play.tokens import prompt_ids, score_text, written_tokens
from tiny_gpt.tokenizer.byte_char import ByteTokenizer


@pytest.fixture(scope="module")
def loaded():
    model = random_model().eval()
    return LoadedModel(model, ByteTokenizer(), Progress(1, 1, 1.0, 1.0, 1.0), RunConfig(model=model.config).to_flat())


def test_written_tokens_are_those_of_generate(snapshots, run_folder):
    snapshot = snapshots.open(MAIN)
    config = SampleConfig(max_tokens=50, temperature=1.1, top_p=0.95)
    ids = prompt_ids(snapshot.loaded.tokenizer, "l'été")
    events = list(written_tokens(snapshot.engine, config, ids, [5, 6], take_decoder(snapshot, 2, "auto")))
    assert len(events) == 100
    texts = [bytes(event["id"] for event in events if event["text"] == number) for number in (0, 1)]
    model = tiny_gpt.load(run_folder, device="cpu")
    expected = model.samples("l'été", 2, seed=5, max_tokens=50, temperature=1.1, top_p=0.95)
    assert [text.decode(errors="replace") for text in texts] == expected


def test_each_token_comes_with_the_logits_it_was_drawn_from(snapshots):
    snapshot = snapshots.open(MAIN)
    config, ids = SampleConfig(max_tokens=6), [ord("l")]
    events = list(written_tokens(snapshot.engine, config, ids, [1], snapshot.engine.make_decoder(1, "fp32")))
    for event in events:
        with torch.inference_mode():
            logits_V = snapshot.loaded.model(torch.tensor([ids]))[0, -1].double()
        expected = -float(logits_V.log_softmax(-1)[event["id"]]) / math.log(2)
        assert event["bits"] == pytest.approx(expected, abs=1e-3)
        ids = [*ids, event["id"]]


def test_scores_equal_brute_force(loaded):
    """Each token is seen with everything before it, back to the start of a window; one begins every half window."""
    ids, block_size = random_tokens(30), loaded.model.config.block_size
    scored = score_text(loaded, bytes(ids).decode("latin-1"))
    text_ids = np.frombuffer(bytes(ids).decode("latin-1").encode(), dtype=np.uint8)
    assert scored.ids == text_ids.tolist() and len(scored.bits) == len(scored.ids)
    for i in range(1, len(text_ids)):
        # The first window that reaches token i: 0 within block_size, then the window that ends last before it.
        start = 0 if i <= block_size else math.ceil((i - block_size) / (block_size // 2)) * (block_size // 2)
        with torch.inference_mode():
            context = torch.from_numpy(text_ids[start:i].astype(np.int64))[None]
            logits_V = loaded.model(context)[0, -1].double()
        assert scored.bits[i] == pytest.approx(-float(logits_V.log_softmax(-1)[text_ids[i]]) / math.log(2), abs=1e-3)


def test_the_first_token_is_scored_at_the_start_of_a_line(loaded):
    with torch.inference_mode():
        logits_V = loaded.model(torch.tensor([[ord("\n")]]))[0, -1].double()
    expected = -float(logits_V.log_softmax(-1)[ord("x")]) / math.log(2)
    assert score_text(loaded, "x").bits == [pytest.approx(expected, abs=1e-3)]


def test_the_whole_texts_figure_is_that_of_eval(loaded):
    text = "né dog and cat\n" * 4
    assert score_text(loaded, text).bits_per_byte == pytest.approx(tiny_gpt.Model(loaded).bits_per_byte(text))


@pytest.mark.parametrize(("text", "n_bytes"), [("", 0), ("x", 1)])
def test_short_texts_have_no_figure(loaded, text, n_bytes):
    scored = score_text(loaded, text)
    assert (scored.bits_per_byte, scored.n_bytes, len(scored.bits)) == (None, n_bytes, n_bytes)
