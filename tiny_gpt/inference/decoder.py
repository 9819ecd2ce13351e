"""What can take texts through a model token by token: one prompt continued, or many texts that come and go."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Decoder(Protocol):
    """Continues one prompt in `n_texts` ways at once, all of them a token further at each step.

    A model sees `block_size` tokens. Where a text grows longer, a second window, which begins `block_size / 2` tokens
    after the first, is read along and takes over when the first is full. So at least the last `block_size / 2` tokens
    are always in view, every position is one that the model was trained on, and nothing has to be read again.
    """

    def read(self, ids: Sequence[int], n_ahead: int) -> NDArray[np.float32]:
        """Begin with a prompt of at least one token, up to `n_ahead` more to come: logits (V,) of the next."""

    def step(self, ids: Sequence[int], texts: Sequence[int]) -> NDArray[np.float32]:
        """Give each of `texts` (those still growing, by number) its next token: logits (len(texts), V) after it."""


class BatchDecoder(Protocol):
    """Takes texts of different lengths through the model together. Texts come and go between two passes.

    A text sees the same windows, and gets the same logits, as it would alone in a `Decoder`.
    """

    def add(self, ids: Sequence[int], n_ahead: int, all_logits: bool = False) -> int | None:
        """Begin a text with a prompt of one token to `block_size`, up to `n_ahead` more to come; its number.

        None if there is no room now. The next passes read the prompt; then logits of the next token follow, or, with
        `all_logits`, those after each of its tokens.
        """

    def fork(self, text: int) -> int | None:
        """A second text that begins like one whose prompt has just been read; None if there is no room, or if reading
        it anew is as good."""

    def append(self, text: int, token_id: int) -> None:
        """The next token of a text whose tokens have all been read."""

    def remove(self, text: int) -> None:
        """End a text, whatever its state; its room is free."""

    def run_pass(self) -> list[tuple[int, int, NDArray[np.float32]]]:
        """Read the next token of each text that has one, and parts of new prompts.

        Returns (text, position of the token just read, logits (V,) of the one after it) wherever logits are wanted.
        Positions count from the first token of the prompt. The next pass overwrites the logits.
        """
