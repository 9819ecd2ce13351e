"""A model's weights laid out for the compiled programs, a cache, and the team of threads that runs them."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiny_gpt.config import ModelConfig
from tiny_gpt.inference.cpu.kernels import TILE, tiles, to_bf16
from tiny_gpt.inference.cpu.programs import classic, modern
from tiny_gpt.inference.cpu.team import Team
from tiny_gpt.inference.plain_decoder import behind
from tiny_gpt.model.gpt import GPT, LAYER_NORM_EPS, RMS_NORM_EPS, rope_table

# Rows that are taken through the model at once when a prompt is read.
MAX_ROWS = 64

Array = NDArray[np.float32]
Rows = Sequence[tuple[int, int, int]]
Weights = dict[str, Array]
Pack = Callable[[Array], NDArray[Any]]


class CompiledDecoder:
    """See `decoder.Decoder`. Each text has two slots in the cache, one for each window; they take turns."""

    def __init__(self, model: GPT, n_texts: int) -> None:
        config = model.config
        width, block_size = config.width_of_head, config.block_size
        self._n_texts, self._block_size, self._vocab_size = n_texts, block_size, model.vocab_size
        weights = {name: weight.detach().float().numpy() for name, weight in model.state_dict().items()}
        pack = to_bf16 if model.compute_dtype == torch.bfloat16 else _as_is
        widths = [config.d_model, config.d_model, 3 * config.n_head * width, config.n_head * width, config.d_ff]
        if config.architecture == "classic":
            self._program, self._settings = classic, (config.n_head, LAYER_NORM_EPS)
            self._weights = _classic_weights(weights, config.n_layer, pack)
        else:
            self._program, self._settings = modern, (config.n_head, RMS_NORM_EPS)
            angles = tuple(table_TK.numpy() for table_TK in rope_table(config))
            self._weights = (*angles, *_modern_weights(weights, config.n_layer, pack))
            widths.append(config.d_ff)
        slots = (config.n_layer, 2 * n_texts, config.n_head)
        # Zeros take no memory before something is written there.
        self._keys: Array = np.zeros((*slots, width, block_size), dtype=np.float32)
        self._values: Array = np.zeros((*slots, block_size, width), dtype=np.float32)
        n_rows = max(MAX_ROWS, 2 * n_texts)
        self._scratch = [_buffer(n_rows, width) for width in widths]
        self._scores = _buffer(torch.get_num_threads(), block_size)
        self._logits = _buffer(n_rows, self._vocab_size)
        self._team = self._fastest_team()

    def read(self, ids: Sequence[int], n_ahead: int) -> Array:
        ids = ids[-self._block_size :]
        self._front, self._back = 0, self._n_texts
        self._position, self._slides = len(ids), len(ids) + n_ahead > self._block_size
        behind_ids = ids[behind(self._block_size) :] if self._slides else ()
        rows = [(token, self._back, position) for position, token in enumerate(behind_ids)]
        rows += [(token, self._front, position) for position, token in enumerate(ids)]
        for start in range(0, len(rows), MAX_ROWS):
            part = rows[start : start + MAX_ROWS]
            logits = self._take(part, [len(part) - 1])
        for slot, n_read in ((self._front, len(ids)), (self._back, len(behind_ids))):
            others = slice(slot + 1, slot + self._n_texts)
            self._keys[:, others, ..., :n_read] = self._keys[:, slot : slot + 1, ..., :n_read]
            self._values[:, others, :, :n_read] = self._values[:, slot : slot + 1, :, :n_read]
        return logits[0].copy()

    def step(self, ids: Sequence[int], texts: Sequence[int]) -> Array:
        if self._position == self._block_size:
            self._front, self._back = self._back, self._front
            self._position -= behind(self._block_size)
        rows = [(token, self._front + text, self._position) for token, text in zip(ids, texts, strict=True)]
        position_behind = self._position - behind(self._block_size)
        if self._slides and position_behind >= 0:
            rows += [(token, self._back + text, position_behind) for token, text in zip(ids, texts, strict=True)]
        self._position += 1
        return self._take(rows, range(len(texts))).copy()

    def _take(self, rows: Rows, wanted: Sequence[int], team: Team | None = None) -> Array:
        """Take `rows`, each (token id, slot, position), through the model: logits (len(wanted), V) after some of them.

        The array is overwritten by the next call.
        """
        rows_R3, wanted_M = np.array(rows, dtype=np.int64), np.array(wanted, dtype=np.int64)
        buffers = (self._keys, self._values, *self._scratch, self._scores, self._logits)
        (team or self._team).run(self._program, (*self._settings, rows_R3, wanted_M, *self._weights, *buffers))
        return self._logits[: len(wanted), : self._vocab_size]

    def _fastest_team(self) -> Team:
        """As many threads as torch would use, or one where that is faster: for a small model, or on a busy machine."""
        seconds = dict.fromkeys(sorted({1, torch.get_num_threads()}), float("inf"))
        for _ in range(4):  # the first compiles, or loads what was compiled
            for size in seconds:
                team = _teams.get(size) or _teams.setdefault(size, Team(size))
                start = time.perf_counter()
                self._take([(0, 0, 0)], [0], team)
                seconds[size] = min(seconds[size], time.perf_counter() - start)
        return _teams[min(seconds, key=lambda size: seconds[size])]


_teams: dict[int, Team] = {}


def compile_all() -> None:
    """Have all of it compiled, so that nobody waits for it later."""
    for config in (ModelConfig("classic", n_layer=1), ModelConfig("modern", n_layer=1)):
        CompiledDecoder(GPT(config, vocab_size=1), 1)


def _classic_weights(weights: Weights, n_layer: int, pack: Pack) -> tuple[NDArray[Any], ...]:
    """In the order that the program takes them, those of all layers together."""

    def linear(name: str) -> tuple[NDArray[Any], Array]:
        layers = _layers(name, n_layer)
        biases = [weights[f"{layer}.bias"] for layer in layers]
        padded = [np.pad(bias_N, (0, -len(bias_N) % TILE)) for bias_N in biases]
        return np.stack([pack(tiles(weights[f"{layer}.weight"])) for layer in layers]), np.stack(padded)

    def norm(*layers: str) -> Array:
        return np.stack([np.stack((weights[f"{layer}.weight"], weights[f"{layer}.bias"])) for layer in layers])

    return (
        *(weights["token_embedding.weight"], weights["position_embedding.weight"]),
        *(norm(*_layers("norm1", n_layer)), *linear("attention.qkv"), *linear("attention.out")),
        *(norm(*_layers("norm2", n_layer)), *linear("mlp.up"), *linear("mlp.down")),
        *(norm("norm")[0], *_head(weights, pack)),
    )


def _modern_weights(weights: Weights, n_layer: int, pack: Pack) -> tuple[NDArray[Any], ...]:
    """In the order that the program takes them, those of all layers together; biases are zeros, the same for all."""

    def stacked(name: str, form: Pack) -> NDArray[Any]:
        return np.stack([form(weights[f"{layer}.weight"]) for layer in _layers(name, n_layer)])

    def linear(name: str) -> tuple[NDArray[Any], Array]:
        matrices = stacked(name, lambda weight_NK: pack(tiles(weight_NK)))
        return matrices, np.zeros(matrices.shape[1] * TILE, dtype=np.float32)

    return (
        *(weights["token_embedding.weight"], stacked("norm1", _as_is), *linear("attention.qkv")),
        *(stacked("attention.q_norm", _as_is), stacked("attention.k_norm", _as_is), *linear("attention.out")),
        *(stacked("norm2", _as_is), linear("mlp.gate")[0], *linear("mlp.up"), *linear("mlp.down")),
        *(weights["norm.weight"], *_head(weights, pack)),
    )


def _head(weights: Weights, pack: Pack) -> tuple[NDArray[Any], Array]:
    matrix = pack(tiles(weights["head.weight"]))
    return matrix, np.zeros(len(matrix) * TILE, dtype=np.float32)


def _layers(name: str, n_layer: int) -> list[str]:
    return [f"blocks.{layer}.{name}" for layer in range(n_layer)]


def _as_is(x: Array) -> Array:
    return x


def _buffer(n_rows: int, width: int) -> Array:
    """Zeros for rows of `width` numbers, up to whole tiles."""
    return np.zeros((n_rows, -(-width // TILE) * TILE), dtype=np.float32)
