"""Our weights under the names and in the layout of GPT2LMHeadModel and Qwen3ForCausalLM, and theirs as ours.

GPT-2's matrices inside a block lie transposed (its Conv1D), Qwen3 has queries, keys and values apart, and fewer heads
of keys and values, each of which stands for several of ours. Everything is copied exactly.

Files are safetensors alone. A stranger's are held against the config.json before memory is taken for a weight.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tiny_gpt.config import ModelConfig
from tiny_gpt.errors import BadInputError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import FP32_BYTES, check_dimensions, weight_shapes
from tiny_gpt.model_io.bounded_json import read_object, shown
from tiny_gpt.model_io.hf_config import StockConfig

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_HEADER_BYTES, MAX_INDEX_BYTES, MAX_SHARDS = 8 << 20, 8 << 20, 1000
DTYPES = ("F32", "BF16", "F16")

PREFIXES = {"gpt2": "transformer.", "qwen3": "model."}
BLOCKS = {"gpt2": "h", "qwen3": "layers"}
NAMES = {
    "gpt2": {
        "token_embedding": "wte",
        "position_embedding": "wpe",
        "norm1": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "norm2": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
        "norm": "ln_f",
        "head": "lm_head",
    },
    "qwen3": {
        "token_embedding": "embed_tokens",
        "norm1": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "attention.out": "self_attn.o_proj",
        "norm2": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
        "norm": "norm",
        "head": "lm_head",
    },
}
HEAD = "lm_head.weight"
# Constants that old files hold beside the weights.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def stock_weights(model: GPT) -> dict[str, torch.Tensor]:
    """Every weight by the name that the stock class has for it; views of ours where that is enough."""
    architecture = model.config.architecture
    result = {}
    for name, weight in model.state_dict().items():
        names = _stock_names(name, architecture)
        values = weight.T if _is_transposed(name, weight.ndim, architecture) else weight
        for stock_name, part in zip(names, values.chunk(len(names)), strict=True):
            result[stock_name if stock_name == HEAD else PREFIXES[architecture] + stock_name] = part
    return result


def _stock_names(name: str, architecture: str) -> list[str]:
    """Without the prefix: blocks.0.mlp.up.weight -> [h.0.mlp.c_fc.weight]."""
    part, kind = name.rsplit(".", 1)
    block = ""
    if part.startswith("blocks."):
        _, layer, part = part.split(".", 2)
        block = f"{BLOCKS[architecture]}.{layer}."
    parts = [part]
    if architecture == "qwen3" and part == "attention.qkv":
        parts = ["attention.q", "attention.k", "attention.v"]
    return [f"{block}{NAMES[architecture][each]}.{kind}" for each in parts]


def _is_transposed(name: str, n_dimensions: int, architecture: str) -> bool:
    return architecture == "gpt2" and name.startswith("blocks.") and n_dimensions == 2


class StockWeights:
    """The safetensors files of a folder, open for reading, their weights by the stock name without its prefix."""

    def __init__(self, folder: Path, files: Iterable[tuple[Path, Any]], architecture: str) -> None:
        """Raises BadInputError for names that two weights share and for numbers that are no floats."""
        self.folder = folder
        self._file_of: dict[str, tuple[str, Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path, file in files:
            for full_name in file.keys():  # noqa: SIM118 - it is no dict
                name = full_name.removeprefix(PREFIXES[architecture])
                if name.endswith(BUFFERS):
                    continue
                if name in self._file_of:
                    raise BadInputError(f"{shown(path)}: the weight {shown(full_name)} is there twice")
                found = file.get_slice(full_name)
                if found.get_dtype() not in DTYPES:
                    raise BadInputError(
                        f"{shown(path)}: {shown(full_name)} is {shown(found.get_dtype())}, but tiny_gpt supports only "
                        f"{', '.join(DTYPES)}"
                    )
                self._file_of[name] = full_name, file
                self._shapes[name] = tuple(found.get_shape())

    def check(self, stock: StockConfig) -> None:
        """Raise BadInputError unless these are the weights of this very model; no loop is longer than their number."""
        found = {name for name in self._shapes if name != HEAD or not stock.is_tied}
        if stock.model.n_layer > len(found):
            raise BadInputError(
                f"{shown(self.folder)}: the config.json has {stock.model.n_layer} layers, the weights are only "
                f"{len(found)}"
            )
        expected = dict(_expected_shapes(stock))
        odd = [name for name in expected.keys() | found if self._shapes.get(name) != expected.get(name)]
        if odd:
            first = min(odd)
            raise BadInputError(
                f"{shown(self.folder)}: the weights do not fit the config.json; {shown(first)} should be "
                f"{_shape(expected.get(first))} and is {_shape(self._shapes.get(first))}"
            )
        shapes = dict(weight_shapes(stock.model, stock.vocab_size))
        try:
            check_dimensions(stock.model, stock.vocab_size, shapes, FP32_BYTES * sum(map(math.prod, shapes.values())))
        except ValueError as error:
            raise BadInputError(f"{shown(self.folder)}: {error}") from error

    def copy_into(self, model: GPT, stock: StockConfig) -> None:
        """Fill in every weight of `model`, which has at most `stock.vocab_size` ids. Raises SafetensorError."""
        architecture = stock.model.architecture
        for name, weight in model.state_dict().items():
            names = _stock_names(name, architecture)
            if name == "head.weight" and stock.is_tied:
                names = _stock_names("token_embedding.weight", architecture)
            parts = [self._tensor(each) for each in names]
            if len(parts) > 1:
                parts = [parts[0], *(_repeated(part, stock) for part in parts[1:])]
            values = torch.cat(parts) if len(parts) > 1 else parts[0]
            values = values.T if _is_transposed(name, values.ndim, architecture) else values
            weight.copy_(values[: len(weight)])

    def _tensor(self, name: str) -> torch.Tensor:
        full_name, file = self._file_of[name]
        tensor: torch.Tensor = file.get_tensor(full_name)
        return tensor


@contextlib.contextmanager
def open_weights(folder: Path, architecture: str) -> Iterator[StockWeights]:
    """The weights of `folder`, in one file or in several named by an index. Raises BadInputError."""
    with contextlib.ExitStack() as stack:
        files = []
        for path in _weight_files(folder):
            try:
                _check_header(path)
                files.append((path, stack.enter_context(safe_open(path, framework="pt"))))
            except (OSError, SafetensorError) as error:
                raise BadInputError(
                    f"{shown(path)} is no safetensors file, or was cut short or damaged ({shown(error)}); fetch it anew"
                ) from error
        yield StockWeights(folder, files, architecture)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).exists() or not (folder / INDEX_FILE).exists():
        if not (folder / WEIGHTS_FILE).is_file():
            raise _no_weights(folder)
        return [folder / WEIGHTS_FILE]
    places = read_object(folder / INDEX_FILE, MAX_INDEX_BYTES).get("weight_map")
    names = set(map(str, places.values())) if isinstance(places, dict) else set()
    if not 0 < len(names) <= MAX_SHARDS:
        raise BadInputError(
            f"{shown(folder / INDEX_FILE)} names no files, or more than {MAX_SHARDS}, in its weight_map"
        )
    for name in sorted(names):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise BadInputError(f"{shown(folder / INDEX_FILE)}: {shown(name)} is no safetensors file of this folder")
        if not (folder / name).is_file():
            raise BadInputError(f"{shown(folder)}: its file {shown(name)} is missing, or no file; fetch it anew")
    return [folder / name for name in sorted(names)]


def _no_weights(folder: Path) -> BadInputError:
    if any((folder / name).exists() for name in PICKLES):
        return BadInputError(
            f"{shown(folder)} has its weights as {PICKLES[0]} alone, which can run code when it is read; convert it "
            f"with transformers: from_pretrained(...).save_pretrained(NEW_FOLDER) writes {WEIGHTS_FILE}"
        )
    return BadInputError(f"{shown(folder)} has no {WEIGHTS_FILE}; name a folder that save_pretrained wrote")


def _check_header(path: Path) -> None:
    """The library reads a header of any size into memory. Raises BadInputError or OSError."""
    with open(path, "rb") as file:
        start = file.read(8)
    n_header_bytes = int.from_bytes(start, "little")
    if len(start) == 8 and n_header_bytes > MAX_HEADER_BYTES:
        raise BadInputError(
            f"{shown(path)} is no safetensors file, or damaged: its header would have {n_header_bytes:,} bytes"
        )


def _expected_shapes(stock: StockConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The stock names and shapes of all weights."""
    config: ModelConfig = stock.model
    for name, shape in weight_shapes(config, stock.vocab_size):
        names = _stock_names(name, config.architecture)
        if len(names) > 1:
            heads = (config.n_head, stock.n_kv_heads, stock.n_kv_heads)
            yield from zip(names, ((n * config.dim_per_head, *shape[1:]) for n in heads), strict=True)
        elif names != [HEAD] or not stock.is_tied:
            yield names[0], shape[::-1] if _is_transposed(name, len(shape), config.architecture) else shape


def _repeated(part: torch.Tensor, stock: StockConfig) -> torch.Tensor:
    """Keys or values with each head as often as it has heads of queries, (n_head K, D)."""
    by_head = part.unflatten(0, (stock.n_kv_heads, -1))
    return by_head.repeat_interleave(stock.model.n_head // stock.n_kv_heads, dim=0).flatten(0, 1)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape)) or "a single number"
