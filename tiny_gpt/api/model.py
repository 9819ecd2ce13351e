"""A trained model in a Python program: `tiny_gpt.load(PATH)` gives a `Model` that writes and that scores text.

>>> model = tiny_gpt.load("runs/my_book")
>>> model.generate("Once", max_tokens=20, seed=1)
>>> for piece in model.stream("Once"): print(piece, end="")
"""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tiny_gpt.config import SampleConfig
from tiny_gpt.device import pick_device
from tiny_gpt.evaluation import FixedWindows, bits_per_byte
from tiny_gpt.inference.decoder import Decoder
from tiny_gpt.inference.engine import engine_for
from tiny_gpt.inference.generate import write
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.open_model import open_path
from tiny_gpt.run.folders import find_model
from tiny_gpt.tokenizer.base import decode
from tiny_gpt.tokenizer.byte_char import to_utf8

# Sequences that are scored at once.
BATCH_SIZE = 32


class TokenScore(NamedTuple):
    """One token of a text and how well the model predicted it."""

    token: str
    logprob: float
    """Natural logarithm of its probability, given what stands before it in its sequence."""


class Model:
    """A trained model. Raises the children of TinyGPTError, whose texts say what is wrong and what to do."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        """The network, its tokenizer, how far it was trained, and the settings of its run."""
        self._engine = engine_for(loaded)
        self._idle_decoder: Decoder | None = None
        self._precision = ""

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """The continuation of `prompt`, without it. `settings` are those of `tiny-gpt generate`: max_tokens,
        temperature, top_k, top_p, min_p, repetition_penalty, stop (a tuple), precision, and seed; without one each
        text is another."""
        return "".join(self.stream(prompt, **settings))

    def stream(self, prompt: str = "", **settings: Any) -> Iterator[str]:
        """The same piece by piece."""
        config = replace(SampleConfig(**settings), prompt=prompt)
        decoder, self._idle_decoder = self._idle_decoder, None
        if decoder is None or self._precision != config.precision:
            decoder = self._engine.make_decoder(1, config.precision)
        try:
            for (text,) in write(self._engine, config, [_seed(config)], decoder):
                if piece := text.take():
                    yield piece
        finally:
            self._idle_decoder, self._precision = decoder, config.precision

    def samples(self, prompt: str, n: int, **settings: Any) -> list[str]:
        """`n` continuations, written beside one another; the i-th is what the seed `seed` + i gives."""
        config = replace(SampleConfig(**settings), prompt=prompt, num_samples=n)
        seed = _seed(config)
        return [text.text for text in list(write(self._engine, config, [seed + i for i in range(n)]))[-1]]

    def logprobs(self, text: str) -> list[TokenScore]:
        """Each token of `text` but the first, which nothing stands before, scored in sequences as val_loss is."""
        ids = self.loaded.tokenizer.encode(text)
        if len(ids) < 2:
            return []
        losses = self._windows(ids).losses(self.loaded.model)
        return [
            TokenScore(decode(self.loaded.tokenizer, [token]), -loss)
            for token, loss in zip(ids[1:].tolist(), losses.tolist(), strict=True)
        ]

    def bits_per_byte(self, text: str) -> float:
        """How many bits the model needs for each byte of `text`; the figure of `tiny-gpt eval`. NaN for one token."""
        ids = self.loaded.tokenizer.encode(text)
        if len(ids) < 2:
            return math.nan
        return bits_per_byte(self._windows(ids).loss(self.loaded.model), len(ids), len(to_utf8(text)))

    def _windows(self, ids: Any) -> FixedWindows:
        return FixedWindows(ids, self.loaded.model.config.block_size, BATCH_SIZE, len(ids))


def load(path: str | Path = "", device: str = "auto") -> Model:
    """The model of a run (its name or folder), a model file or an exported folder; "" is the newest run's best.

    Raises BadInputError saying why when there is none, or when it is damaged, foreign or from a newer tiny_gpt.
    """
    return Model(open_path(find_model(str(path)), pick_device(device)))


def _seed(config: SampleConfig) -> int:
    return random.SystemRandom().randrange(2**31) if config.seed is None else config.seed
