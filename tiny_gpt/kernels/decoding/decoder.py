"""The compiled decoder: one prompt continued in several ways, all texts at the same position."""

from collections.abc import Mapping, Sequence

from tiny_gpt.config import ModelConfig
from tiny_gpt.kernels.decoding.compiled_model import MAX_ROWS, Array, CompiledModel
from tiny_gpt.model.shapes import second_window_offset


class CompiledDecoder:
    """See `decoder.Decoder`. Each text has two slots of the cache, one for each window; the windows take turns.

    With 3 texts, slots 0 to 2 hold the first windows and 3 to 5 the second. `_front` is the first slot of the window
    that is in use, `_back` that of the one that is read along.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array], n_texts: int, in_half: bool = False) -> None:
        """`weights` and `in_half` as for CompiledModel."""
        self._config, self._n_texts = config, n_texts
        self._model = CompiledModel(config, weights, max(MAX_ROWS, 2 * n_texts), in_half)

    def read(self, ids: Sequence[int], n_ahead: int) -> Array:
        """See `decoder.Decoder`."""
        block_size = self._config.block_size
        ids = ids[-block_size:]
        self._front, self._back = 0, self._n_texts
        self._position, self._needs_second = len(ids), len(ids) + n_ahead > block_size
        # A text that stays within block_size needs no second window and no more positions than it will have tokens.
        n_slots, n_positions = self._n_texts * (2 if self._needs_second else 1), min(len(ids) + n_ahead, block_size)
        if n_slots > self._model.n_slots or n_positions > self._model.n_positions:
            self._model.make_cache(n_slots, n_positions)
        second_ids = ids[second_window_offset(block_size) :] if self._needs_second else ()
        rows = [(token, self._back, position) for position, token in enumerate(second_ids)]
        rows += [(token, self._front, position) for position, token in enumerate(ids)]
        # The second window, if there is one, goes first, so that the logits of the last part are those of the first.
        for start in range(0, len(rows), MAX_ROWS):
            part = rows[start : start + MAX_ROWS]
            logits = self._model.forward(part, [len(part) - 1])
        self._copy_to_other_texts(self._front, len(ids))
        if self._needs_second:
            self._copy_to_other_texts(self._back, len(second_ids))
        return logits[0].copy()

    def step(self, ids: Sequence[int], texts: Sequence[int]) -> Array:
        """See `decoder.Decoder`."""
        offset = second_window_offset(self._config.block_size)
        # The window is full: the second one, block_size / 2 behind, takes over as the first.
        if self._position == self._config.block_size:
            self._front, self._back = self._back, self._front
            self._position -= offset
        rows = [(token, self._front + text, self._position) for token, text in zip(ids, texts, strict=True)]
        # The window that is read along begins `offset` later, so a token's position in it is smaller.
        if self._needs_second and self._position >= offset:
            position = self._position - offset
            rows += [(token, self._back + text, position) for token, text in zip(ids, texts, strict=True)]
        self._position += 1
        # Logits after the first windows' rows only. A copy, since the next pass overwrites the array.
        return self._model.forward(rows, range(len(texts))).copy()

    def _copy_to_other_texts(self, slot: int, n_positions: int) -> None:
        """Copy what the first text has in the cache to all others: they continue the same prompt."""
        self._model.copy_slot(slot, slice(slot + 1, slot + self._n_texts), n_positions)
