"""Tokens for the page: those that the model writes, one by one with their logits, and those of a text, scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.config import SampleConfig
from tiny_gpt.evaluation import FixedWindows, bits_per_byte
from tiny_gpt.inference.decoder import Decoder
from tiny_gpt.inference.engine import Engine
from tiny_gpt.inference.generate import continue_ids
from tiny_gpt.inference.prompts import START, as_text
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.token_losses import IGNORED
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.play.next_token import summarize_logits, surprise_bits
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.tokenizer.byte_char import to_utf8

# Windows that are scored at once.
N_WINDOWS = 8


@dataclass
class WatchingDecoder:
    """A decoder that remembers the logits it gave last for each text."""

    decoder: Decoder
    n_texts: int

    def read(self, ids: Sequence[int], n_ahead: int) -> NDArray[np.float32]:
        logits_V = self.decoder.read(ids, n_ahead)
        self.last = [logits_V] * self.n_texts
        return logits_V

    def step(self, ids: Sequence[int], texts: Sequence[int]) -> NDArray[np.float32]:
        logits = self.decoder.step(ids, texts)
        for row, text in enumerate(texts):
            self.last[text] = logits[row]
        return logits


def written_tokens(
    engine: Engine, config: SampleConfig, ids: Sequence[int], seeds: Sequence[int], decoder: Decoder
) -> Iterator[dict[str, Any]]:
    """Continue `ids` once for each seed; yields {"text": number, "id": token, "bits": surprise, "next": logits} for
    each token. "next" is the summary of the logits that the token was drawn from.

    The tokens are those of `tiny-gpt generate` with the same seeds.
    """
    watching = WatchingDecoder(decoder, len(seeds))
    n_seen = [0] * len(seeds)
    for texts in continue_ids(engine, config, list(ids), seeds, watching):
        for number, text in enumerate(texts):
            if text.n_tokens == n_seen[number]:
                continue
            n_seen[number] = text.n_tokens
            token_id, logits_V = text.ids[-1], watching.last[number]
            yield {
                "text": number,
                "id": token_id,
                "bits": round(surprise_bits(logits_V, token_id), 4),
                "next": summarize_logits(logits_V),
            }


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids that `tiny-gpt generate` starts from."""
    ids: list[int] = tokenizer.encode(as_text(text) or START).tolist()
    return ids


@dataclass(frozen=True)
class ScoredText:
    """A text's tokens with their surprise."""

    ids: list[int]
    bits: list[float]
    """Of each token, given those before it; of the first, at the start of a line."""
    bits_per_byte: float | None
    """The figure of `tiny-gpt eval`; None for fewer than two tokens, and if it was not asked for."""
    n_bytes: int


def score_text(loaded: LoadedModel, text: str, whole: bool = True) -> ScoredText:
    """Score every token with at least half of block_size tokens before it, as far as there is so much.

    `whole` adds the figure of the whole text, which takes as long again.
    """
    ids = loaded.tokenizer.encode(text)
    if len(ids) == 0:
        return ScoredText([], [], None, 0)
    start = loaded.tokenizer.encode(START).tolist()
    first = _losses(loaded.model, [start], [[*[IGNORED] * (len(start) - 1), int(ids[0])]])[0]
    nats = [*first, *_sliding_losses(loaded.model, ids.astype(np.int64))]
    figure = None
    if whole and len(ids) > 1:
        windows = FixedWindows(ids, loaded.model.config.block_size, N_WINDOWS, len(ids))
        figure = bits_per_byte(windows.loss(loaded.model), len(ids), len(to_utf8(text)))
    bits = [round(nat / float(np.log(2)), 4) for nat in nats]
    return ScoredText(ids.tolist(), bits, figure, len(to_utf8(text)))


def _sliding_losses(model: GPT, ids: NDArray[np.int64]) -> list[float]:
    """The loss of ids[1:] in nats. Windows of block_size tokens overlap by half, and each scores what the one before
    could not see: so no token but the first ones is judged by a short context."""
    block_size = model.config.block_size
    stride = max(1, block_size // 2)
    inputs: list[list[int]] = []
    targets: list[list[int]] = []
    n_scored = 0
    for start in range(0, len(ids) - 1, stride):
        window = ids[start : start + block_size + 1]
        n_known = max(0, n_scored - start)
        inputs.append(window[:-1].tolist())
        targets.append([IGNORED] * n_known + window[1 + n_known :].tolist())
        n_scored = start + len(window) - 1
        if n_scored >= len(ids) - 1:
            break
    losses: list[float] = []
    for i in range(0, len(inputs), N_WINDOWS):
        for row in _losses(model, inputs[i : i + N_WINDOWS], targets[i : i + N_WINDOWS]):
            losses += row
    return losses


@torch.inference_mode()
def _losses(model: GPT, inputs: list[list[int]], targets: list[list[int]]) -> list[list[float]]:
    """For each row the losses of its targets in nats, without those that are IGNORED. Rows may differ in length."""
    longest = max(map(len, inputs))
    inputs_BT = torch.tensor([row + [0] * (longest - len(row)) for row in inputs], device=model.device)
    targets_BT = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in targets], device=model.device)
    losses_BT = model.losses(inputs_BT, targets_BT).cpu()
    return [row[targets_BT[i].cpu() != IGNORED].tolist() for i, row in enumerate(losses_BT)]
