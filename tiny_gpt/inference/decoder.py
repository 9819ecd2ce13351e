"""What can take texts through a model token by token."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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
