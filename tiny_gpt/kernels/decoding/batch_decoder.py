"""Many texts in one pass, each at its own position: continuous batching (Orca, Yu et al., OSDI 2022).

A row of the compiled forward pass is one token at one position of one slot of the cache, so rows of different texts go
through the model together, and a weight is read once for all of them. Prompts are read in parts, beside the next tokens
of texts that are being written, so that a long prompt does not stop the others for long.

What a row computes does not depend on the rows beside it (layers.py). So a text gets the same logits as alone, and what
a slot still holds of an earlier text can be used by a later one that begins with the same tokens.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from tiny_gpt.config import ModelConfig
from tiny_gpt.kernels.decoding.compiled_model import MAX_ROWS, Array, CompiledModel
from tiny_gpt.model.shapes import FP32_BYTES, second_window_offset

# Rows of prompts in a pass, where other texts are waiting for their next token, which takes so much longer then. Where
# nobody waits, a prompt gets MAX_ROWS.
PROMPT_ROWS = 16
# Of the free memory, for the cache.
MEMORY_SHARE = 0.25


@dataclass
class _Text:
    """The state of a text. Its window is `ids`; that of the second slot, read along, begins block_size / 2 later."""

    front: int
    back: int | None
    """The second slot, of a text that will grow longer than block_size."""
    ids: list[int]
    n_read: int = 0
    n_dropped: int = 0
    """Tokens that stood before `ids` and are out of view."""
    first_wanted: int = 0
    """Logits are wanted after this and all later tokens of `ids`."""


@dataclass
class _Slots:
    """Free slots, the one longest free first, and the tokens that each still holds."""

    held: dict[int, list[int]] = field(default_factory=dict)

    def take(self, ids: Sequence[int]) -> tuple[int, int]:
        """The free slot that begins with most of `ids`, and with how many. There must be one."""
        # Of several equally good ones `max` takes the first in the dict, which has been free for the longest time.
        n_common = {slot: _n_common(held, ids) for slot, held in self.held.items()}
        best = max(n_common, key=lambda slot: n_common[slot])
        del self.held[best]
        return best, n_common[best]

    def give_back(self, slot: int, ids: list[int]) -> None:
        self.held[slot] = ids


class CompiledBatchDecoder:
    """See `inference.decoder.BatchDecoder`. A text has one slot of the cache, or two if it may outgrow block_size."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array], n_texts: int, in_half: bool = False) -> None:
        """For about `n_texts` texts; fewer long ones where memory is short. `weights` and `in_half` as for
        CompiledModel."""
        self._block_size, n_slots = config.block_size, _n_slots(config, n_texts)
        self._model = CompiledModel(config, weights, max(MAX_ROWS, n_slots + PROMPT_ROWS), in_half)
        self._model.make_cache(n_slots, config.block_size)
        self._free = _Slots({slot: [] for slot in range(n_slots)})
        self._texts: dict[int, _Text] = {}
        self._numbers = itertools.count()

    def add(self, ids: Sequence[int], n_ahead: int, all_logits: bool = False) -> int | None:
        """See `BatchDecoder`."""
        needs_second = len(ids) + n_ahead > self._block_size
        if len(self._free.held) < 1 + needs_second:
            return None
        front, n_common = self._free.take(ids)
        back = self._free.take(())[0] if needs_second else None
        text = _Text(front, back, list(ids))
        if not all_logits:
            # The second window's slot holds nothing, so it must be read from its beginning.
            reusable = len(ids) - 1 if back is None else min(len(ids) - 1, second_window_offset(self._block_size))
            text.n_read, text.first_wanted = min(n_common, reusable), len(ids) - 1
        return self._number(text)

    def fork(self, text: int) -> int | None:
        """See `BatchDecoder`."""
        source = self._texts[text]
        if len(self._free.held) < 1 + (source.back is not None):
            return None
        front, n_common = self._free.take(source.ids)
        # A free slot may hold the same text already, as when one prompt is continued again and again.
        if n_common < source.n_read:
            self._model.copy_slot(source.front, slice(front, front + 1), source.n_read)
        back = None
        if source.back is not None:
            back = self._free.take(())[0]
            n_in_second = source.n_read - second_window_offset(self._block_size)
            if n_in_second > 0:
                self._model.copy_slot(source.back, slice(back, back + 1), n_in_second)
        copy = _Text(front, back, source.ids.copy(), source.n_read, source.n_dropped, source.first_wanted)
        return self._number(copy)

    def append(self, text: int, token_id: int) -> None:
        """See `BatchDecoder`."""
        state = self._texts[text]
        if len(state.ids) == self._block_size:
            # The window is full: the second one, block_size / 2 behind, takes over as the first.
            assert state.back is not None, "only a text that may outgrow block_size does"
            n_dropped = second_window_offset(self._block_size)
            state.front, state.back = state.back, state.front
            state.n_read -= n_dropped
            state.n_dropped += n_dropped
            del state.ids[:n_dropped]
            state.first_wanted = 0
        state.ids.append(token_id)

    def remove(self, text: int) -> None:
        """See `BatchDecoder`."""
        state = self._texts.pop(text)
        self._free.give_back(state.front, state.ids[: state.n_read])
        if state.back is not None:
            self._free.give_back(state.back, [])

    def run_pass(self) -> list[tuple[int, int, Array]]:
        """See `BatchDecoder`."""
        unread = {number: len(text.ids) - text.n_read for number, text in self._texts.items()}
        writing = [number for number, n_tokens in unread.items() if n_tokens == 1]
        prompts = [number for number, n_tokens in unread.items() if n_tokens > 1]
        rows: list[tuple[int, int, int]] = []
        wanted: list[tuple[int, int, int]] = []
        # Texts that are being written come first, all of them: each waits for one token only.
        for number in writing:
            self._take_rows(number, math.inf, rows, wanted)
        budget = len(rows) + PROMPT_ROWS if writing else MAX_ROWS
        for number in prompts:
            self._take_rows(number, budget, rows, wanted)
        if not rows:
            return []
        logits = self._model.forward(rows, [row for *_, row in wanted])
        return [(number, position, logits_V) for (number, position, _), logits_V in zip(wanted, logits, strict=True)]

    def _take_rows(
        self, number: int, limit: float, rows: list[tuple[int, int, int]], wanted: list[tuple[int, int, int]]
    ) -> None:
        """Append the rows of a text's unread tokens, up to `limit` rows in all, and to `wanted` (text, position, row)
        of those after which logits are wanted."""
        text, offset = self._texts[number], second_window_offset(self._block_size)
        for position in range(text.n_read, len(text.ids)):
            # A token that both windows contain takes two rows, one in each slot, which go into the same pass.
            if len(rows) + (1 if text.back is None or position < offset else 2) > limit:
                return
            if position >= text.first_wanted:
                wanted.append((number, text.n_dropped + position, len(rows)))
            rows.append((text.ids[position], text.front, position))
            if text.back is not None and position >= offset:
                rows.append((text.ids[position], text.back, position - offset))
            text.n_read += 1

    def _number(self, text: _Text) -> int:
        number = next(self._numbers)
        self._texts[number] = text
        return number


def _n_common(held: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    pairs = zip(held, ids, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(held), len(ids)))


def _n_slots(config: ModelConfig, n_texts: int) -> int:
    """Two slots for each text, as far as memory reaches, but at least for one text."""
    n_numbers = 2 * config.n_layer * config.n_head * config.dim_per_head * config.block_size
    n_affordable = int(MEMORY_SHARE * psutil.virtual_memory().available / (n_numbers * FP32_BYTES))
    return max(2, min(2 * n_texts, n_affordable))
