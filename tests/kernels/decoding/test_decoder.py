"""The compiled decoder: the same bits for any number of texts and threads, 16-bit weights, interrupts, forks."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.inference.support import (
    BLOCK_SIZE,
    LOGITS_BOUND,
    VOCAB_SIZE,
    all_architectures,
    compiled_decoder,
    logits_after,
    random_model,
)
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.kernels import threads
from tiny_gpt.kernels.decoding import compiled_model


@all_architectures
@pytest.mark.parametrize("in_half", [False, True])
def test_logits_do_not_depend_on_texts_or_threads(
    architecture: str, in_half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit. So a text is the same whichever others are written beside it."""
    model = random_model(architecture)
    ids = np.random.default_rng(0).integers(VOCAB_SIZE, size=(2 * BLOCK_SIZE + 3, 9))
    logits_of_first: list[list[NDArray[np.float32]]] = []
    monkeypatch.setattr(compiled_model, "n_processors", lambda: 2)
    for n_texts, n_threads in ((1, 1), (2, 1), (4, 2), (9, 2)):
        decoder = compiled_decoder(model, n_texts, in_half)
        decoder._model.n_threads = n_threads
        logits = [decoder.read([1, 2, 3], 100)]
        logits += [decoder.step(row[:n_texts].tolist(), range(n_texts))[0] for row in ids]
        logits_of_first.append(logits)
    for others in logits_of_first[1:]:
        for first, other in zip(logits_of_first[0], others, strict=True):
            np.testing.assert_array_equal(first, other)


@all_architectures
def test_fp16_weights_change_logits_by_their_rounding_only(architecture: str) -> None:
    model, ids = random_model(architecture), list(range(10))
    exact_V, rounded_V = (compiled_decoder(model, 1, in_half).read(ids, 0) for in_half in (False, True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.copy_(parameter.half().float())
    error = np.abs(rounded_V - logits_after(model, ids).numpy()).max()
    assert error <= LOGITS_BOUND < np.abs(rounded_V - exact_V).max()


def test_weights_too_large_for_fp16_stay_fp32() -> None:
    model, ids = random_model("gpt2"), list(range(10))
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = 1e5
    in_half, in_full = (compiled_decoder(model, 1, in_half).read(ids, 0) for in_half in (True, False))
    np.testing.assert_array_equal(in_half, in_full)


def test_interrupts_leave_a_team_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl+C before and after the other threads have been told of a job, awake or asleep."""
    monkeypatch.setattr(compiled_model, "n_processors", lambda: 2)
    decoder = compiled_decoder(random_model("gpt2"), 1)
    decoder._model.n_threads = 2
    expected_V = decoder.read([1, 2, 3], 0)
    post = threads._post_job

    def interrupted_before(*_: Any) -> None:
        raise KeyboardInterrupt

    def interrupted_after(*arguments: Any) -> None:
        post(*arguments)
        raise KeyboardInterrupt

    for interrupted in (interrupted_before, interrupted_after):
        monkeypatch.setattr(threads, "_post_job", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.read([1, 2, 3], 0)
        monkeypatch.setattr(threads, "_post_job", post)
        np.testing.assert_array_equal(decoder.read([1, 2, 3], 0), expected_V)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="only Unix forks")
def test_a_forked_process_decodes_with_its_own_threads() -> None:
    program = """if True:
        import os, warnings
        from tiny_gpt.kernels.decoding import compiled_model
        compiled_model.n_processors = lambda: 2
        from tests.inference.support import compiled_decoder, random_model
        one = compiled_decoder(random_model("gpt2"), 1)
        one._model.n_threads = 2
        expected = one.read([1, 2, 3], 0)
        child = os.fork()
        assert (one.read([1, 2, 3], 0) == expected).all()
        if child == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_the_decoder_does_not_load_torch() -> None:
    program = "import sys, tiny_gpt.kernels.decoding.decoder; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
