"""What can take texts through a model token by token, and which one is the fastest where the model is."""

import contextlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.inference.plain_decoder import PlainDecoder
from tiny_gpt.model.gpt import GPT


class Decoder(Protocol):
    """Continues one prompt in `n_texts` ways at once, all of them a token further at each step.

    A model sees `block_size` tokens. Where a text grows longer, a second window half a block behind the first is read
    along, and takes its place when the first is full: so that always the last half block at least is in view, every
    position is one that the model was trained on, and nothing has to be read again.
    """

    def read(self, ids: Sequence[int], n_ahead: int) -> NDArray[np.float32]:
        """Begin with a prompt of at least one token, up to `n_ahead` more to come: logits (V,) of the next."""

    def step(self, ids: Sequence[int], texts: Sequence[int]) -> NDArray[np.float32]:
        """Give each of `texts` (those still growing, by number) its next token: logits (len(texts), V) after it."""


def make_decoder(model: GPT, n_texts: int, precision: str = "fp32") -> Decoder:
    """The fastest decoder on the device of `model`.

    The compiled one gives the same logits whatever the number of texts and threads. It can keep the matrices in 16
    bits, for "fp16" and "auto": most of a token's time goes into reading them. Where numba has no release for this
    Python or processor, torch does its work.
    """
    if model.device.type == "cpu":
        with contextlib.suppress(ImportError):
            from tiny_gpt.inference.cpu.decoder import CompiledDecoder

            return CompiledDecoder(model, n_texts, in_half=precision != "fp32")
    return PlainDecoder(model, n_texts)


def must_compile(model: GPT) -> bool:
    """Whether `make_decoder` will take some seconds, as it does once on each machine."""
    if model.device.type == "cpu":
        with contextlib.suppress(ImportError):
            from tiny_gpt.inference.cpu.compiled import is_kept

            return not is_kept(model.config.architecture)
    return False
