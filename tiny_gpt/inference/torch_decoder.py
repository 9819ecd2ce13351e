"""Decoding in plain torch operations, on any device: what a decoder does, in the model's own words."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.kv_cache import KVCache
from tiny_gpt.model.shapes import second_window_offset


class TorchDecoder:
    """See `decoder.Decoder`. Instead of reading a second window along, it reads the half block anew, which gives the
    same window."""

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
