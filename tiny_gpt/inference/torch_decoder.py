"""Decoding in plain torch operations, on any device: what a decoder does, in the model's own words."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.kv_cache import KVCache
from tiny_gpt.model.shapes import second_window_offset


class TorchDecoder:
    """See `decoder.Decoder`. Instead of reading a second window along, it reads the last half of a full window
    anew, which gives the same second window."""

    def __init__(self, model: GPT, n_texts: int) -> None:
        self._model, self._n_texts = model, n_texts
        self._seen: list[list[int]] = []

    def read(self, ids: Sequence[int], n_ahead: int) -> NDArray[np.float32]:
        block_size = self._model.config.block_size
        self._seen = [list(ids[-block_size:]) for _ in range(self._n_texts)]
        self._n_positions = min(len(self._seen[0]) + n_ahead, block_size)
        return self._read_all()[0]

    def step(self, ids: Sequence[int], texts: Sequence[int]) -> NDArray[np.float32]:
        block_size = self._model.config.block_size
        next_ids = dict(zip(texts, ids, strict=True))
        is_full = self._cache.length == block_size
        for text, seen in enumerate(self._seen):
            if is_full:
                del seen[: second_window_offset(block_size)]
            seen.append(next_ids.get(text, seen[-1] if seen else 0))
        if is_full:
            return self._read_all()[list(texts)]
        return self._forward([seen[-1:] for seen in self._seen])[list(texts)]

    def _read_all(self) -> NDArray[np.float32]:
        model = self._model
        self._cache = KVCache(model.config, self._n_texts, self._n_positions, model.device, model.compute_dtype)
        return self._forward(self._seen)

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> NDArray[np.float32]:
        logits_BTV = self._model(torch.tensor(ids, device=self._model.device), self._cache)
        logits: NDArray[np.float32] = logits_BTV[:, -1].float().cpu().numpy()
        return logits


class TorchBatchDecoder:
    """See `decoder.BatchDecoder`. Each text has its own decoder: texts take turns, which is as exact as one alone
    but no faster for several."""

    def __init__(self, model: GPT, n_texts: int) -> None:
        self._model, self._n_texts = model, n_texts
        self._texts: dict[int, _TorchText] = {}
        self._numbers = itertools.count()

    def add(self, ids: Sequence[int], n_ahead: int, all_logits: bool = False) -> int | None:
        if len(self._texts) >= self._n_texts:
            return None
        number = next(self._numbers)
        self._texts[number] = _TorchText(TorchDecoder(self._model, 1), list(ids), n_ahead, all_logits)
        return number

    def fork(self, text: int) -> int | None:
        return None

    def append(self, text: int, token_id: int) -> None:
        self._texts[text].unread = [token_id]

    def remove(self, text: int) -> None:
        del self._texts[text]

    def run_pass(self) -> list[tuple[int, int, NDArray[np.float32]]]:
        found = []
        for number, text in self._texts.items():
            if not text.unread:
                continue
            if text.n_read == 0:
                if text.all_logits:
                    found += [(number, i, logits_V) for i, logits_V in enumerate(self._all_logits(text.unread)[:-1])]
                logits_V = text.decoder.read(text.unread, text.n_ahead)
            else:
                logits_V = text.decoder.step(text.unread, [0])[0]
            text.n_read += len(text.unread)
            text.unread = []
            found.append((number, text.n_read - 1, logits_V))
        return found

    @torch.inference_mode()
    def _all_logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        logits_BTV = self._model(torch.tensor([ids], device=self._model.device))
        logits: NDArray[np.float32] = logits_BTV[0].float().cpu().numpy()
        return logits


@dataclass
class _TorchText:
    decoder: TorchDecoder
    unread: list[int]
    n_ahead: int
    all_logits: bool
    n_read: int = 0
