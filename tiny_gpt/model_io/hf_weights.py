"""Weights under Hugging Face's names and in its layout, from ours and back. Every number is copied exactly.

Three things differ, as the rows of hf_architectures.py say: GPT-2's matrices inside a block are transposed; other
classes store queries, keys and values as three matrices; and with grouped-query attention they have fewer heads of keys
and values, which are repeated here, so that each head of queries has its own.

Only safetensors files are read. An untrusted file is compared with its config.json before memory is allocated.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tiny_gpt.errors import BadInputError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import FP32_BYTES, check_dimensions, weight_shapes
from tiny_gpt.model_io.bounded_json import read_object, shown
from tiny_gpt.model_io.hf_architectures import HF_ARCHITECTURES
from tiny_gpt.model_io.hf_config import HFConfig
from tiny_gpt.model_io.memory import require_memory_for_weights
from tiny_gpt.model_io.safetensors_file import open_tensors

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_HEADER_BYTES, MAX_INDEX_BYTES, MAX_SHARDS = 8 << 20, 8 << 20, 1000
DTYPES = ("F32", "BF16", "F16")

HEAD = "lm_head.weight"
# Constants that files of older versions of transformers hold beside the weights.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def hf_weights(model: GPT) -> dict[str, torch.Tensor]:
    """Every weight by Hugging Face's name; views of ours where no copy is needed."""
    architecture = model.config.architecture
    prefix = HF_ARCHITECTURES[architecture].prefix
    result = {}
    for name, weight in model.state_dict().items():
        hf_names = _hf_names(name, architecture)
        values = weight.T if _is_transposed(name, weight.ndim, architecture) else weight
        for hf_name, part in zip(hf_names, values.chunk(len(hf_names)), strict=True):
            result[hf_name if hf_name == HEAD else prefix + hf_name] = part
    return result


def _hf_names(name: str, architecture: str) -> list[str]:
    """Without the prefix: blocks.0.mlp.up.weight -> [h.0.mlp.c_fc.weight]. Three names for queries, keys and values
    that are stored apart."""
    row = HF_ARCHITECTURES[architecture]
    module, kind = name.rsplit(".", 1)
    block = ""
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        block = f"{row.blocks}.{layer}."
    modules = [module] if module in row.names else [module.replace("qkv", letter) for letter in "qkv"]
    return [f"{block}{row.names[each]}.{kind}" for each in modules]


def _is_transposed(name: str, n_dimensions: int, architecture: str) -> bool:
    return HF_ARCHITECTURES[architecture].transposed and name.startswith("blocks.") and n_dimensions == 2


class HFWeights:
    """Open safetensors files, or others read like them, their weights by Hugging Face's names without the prefix."""

    def __init__(self, source: Path, files: Iterable[tuple[Path, Any]], architecture: str) -> None:
        """Raises BadInputError for a name that occurs twice and for numbers that are not floating point."""
        self.source = source
        self._file_of: dict[str, tuple[str, Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path, file in files:
            for full_name in file.keys():  # noqa: SIM118 - not a dict
                name = full_name.removeprefix(HF_ARCHITECTURES[architecture].prefix)
                if name.endswith(BUFFERS):
                    continue
                if name in self._file_of:
                    raise BadInputError(
                        f"{shown(path)}: the weight {shown(full_name)} occurs twice", code="hf-weight-duplicated"
                    )
                tensor = file.get_slice(full_name)
                if tensor.get_dtype() not in DTYPES:
                    raise BadInputError(
                        f"{shown(path)}: {shown(full_name)} is {shown(tensor.get_dtype())}, but tiny_gpt supports only "
                        f"{', '.join(DTYPES)}",
                        code="hf-dtype-unsupported",
                    )
                self._file_of[name] = full_name, file
                self._shapes[name] = tuple(tensor.get_shape())

    def check(self, hf: HFConfig) -> None:
        """Raise BadInputError unless these are the weights of `hf`, OutOfResourcesError if they are too many.

        No loop is longer than the number of weights in the files, however large the settings are.
        """
        found = {name for name in self._shapes if name != HEAD or not hf.is_tied}
        if hf.model.n_layer > len(found):
            raise BadInputError(
                f"{shown(self.source)}: by its settings it has {hf.model.n_layer} layers, but there are only "
                f"{len(found)} weights",
                code="hf-too-few-weights",
            )
        expected = dict(_expected_shapes(hf))
        wrong = [name for name in expected.keys() | found if self._shapes.get(name) != expected.get(name)]
        if wrong:
            first = min(wrong)
            raise BadInputError(
                f"{shown(self.source)}: the weights do not fit the settings; {shown(first)} should be "
                f"{_shape(expected.get(first))} and is {_shape(self._shapes.get(first))}",
                code="hf-weights-do-not-fit",
            )
        shapes = dict(weight_shapes(hf.model, hf.vocab_size))
        try:
            check_dimensions(hf.model, hf.vocab_size, shapes, FP32_BYTES * sum(map(math.prod, shapes.values())))
        except ValueError as error:
            raise BadInputError(f"{shown(self.source)}: {error}", code="hf-weights-do-not-fit") from error
        require_memory_for_weights(hf.model, hf.vocab_size, shown(self.source))

    def copy_into(self, model: GPT, hf: HFConfig) -> None:
        """Fill in every weight of `model`. Raises SafetensorError."""
        architecture = hf.model.architecture
        for name, weight in model.state_dict().items():
            source = "token_embedding.weight" if name == "head.weight" and hf.is_tied else name
            parts = [self._tensor(hf_name) for hf_name in _hf_names(source, architecture)]
            if len(parts) > 1:
                q, *kv = parts
                parts = [q, *(_repeat_heads(part, hf) for part in kv)]
            values = torch.cat(parts) if len(parts) > 1 else parts[0]
            values = values.T if _is_transposed(name, values.ndim, architecture) else values
            weight[: len(values)].copy_(values[: len(weight)])
            if len(values) < len(weight):  # bytes that the tokenizer lacked
                weight[len(values) :] = values.float().mean(0)

    def _tensor(self, name: str) -> torch.Tensor:
        full_name, file = self._file_of[name]
        tensor: torch.Tensor = file.get_tensor(full_name)
        return tensor


@contextlib.contextmanager
def open_weights(folder: Path, architecture: str) -> Iterator[HFWeights]:
    """The weights of `folder`, in one file or in several that an index names. Raises BadInputError."""
    with contextlib.ExitStack() as stack:
        files = []
        for path in _weight_files(folder):
            try:
                _check_header(path)
                files.append((path, stack.enter_context(open_tensors(path))))
            except (OSError, SafetensorError) as error:
                raise BadInputError(
                    f"{shown(path)} is not a safetensors file, or is truncated or damaged ({shown(error)}); "
                    "download it again",
                    code="safetensors-damaged",
                ) from error
        yield HFWeights(folder, files, architecture)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).exists() or not (folder / INDEX_FILE).exists():
        if not (folder / WEIGHTS_FILE).is_file():
            raise _no_weights(folder)
        return [folder / WEIGHTS_FILE]
    weight_map = read_object(folder / INDEX_FILE, MAX_INDEX_BYTES).get("weight_map")
    names = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    if not 0 < len(names) <= MAX_SHARDS:
        raise BadInputError(
            f"{shown(folder / INDEX_FILE)}: its weight_map names no files, or more than {MAX_SHARDS}",
            code="hf-index-invalid",
        )
    for name in sorted(names):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise BadInputError(
                f"{shown(folder / INDEX_FILE)}: {shown(name)} is not a safetensors file in this folder",
                code="hf-index-invalid",
            )
        if not (folder / name).is_file():
            raise BadInputError(
                f"{shown(folder)}: {shown(name)} is missing or not a regular file; download it again",
                code="hf-shard-missing",
            )
    return [folder / name for name in sorted(names)]


def _no_weights(folder: Path) -> BadInputError:
    if any((folder / name).exists() for name in PICKLES):
        return BadInputError(
            f"{shown(folder)} has its weights only as {PICKLES[0]}, a pickle that can run code when it is read; "
            f"convert it with transformers: from_pretrained(...).save_pretrained(NEW_FOLDER) writes {WEIGHTS_FILE}",
            code="hf-weights-are-pickles",
        )
    return BadInputError(
        f"{shown(folder)} has no {WEIGHTS_FILE}; name a folder that save_pretrained wrote", code="hf-weights-missing"
    )


def _check_header(path: Path) -> None:
    """The safetensors library reads a header of any size into memory. Raises BadInputError or OSError."""
    with open(path, "rb") as file:
        start = file.read(8)
    n_header_bytes = int.from_bytes(start, "little")
    if len(start) == 8 and n_header_bytes > MAX_HEADER_BYTES:
        raise BadInputError(
            f"{shown(path)} is not a safetensors file, or is damaged: its header would have {n_header_bytes:,} bytes",
            code="safetensors-damaged",
        )


def _expected_shapes(hf: HFConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Hugging Face's names and shapes of all weights."""
    config = hf.model
    for name, shape in weight_shapes(config, hf.vocab_size):
        hf_names = _hf_names(name, config.architecture)
        if len(hf_names) > 1:
            n_heads = (config.n_head, hf.n_kv_heads, hf.n_kv_heads)
            yield from zip(hf_names, ((n * config.dim_per_head, *shape[1:]) for n in n_heads), strict=True)
        elif hf_names != [HEAD] or not hf.is_tied:
            yield hf_names[0], shape[::-1] if _is_transposed(name, len(shape), config.architecture) else shape


def _repeat_heads(part: torch.Tensor, hf: HFConfig) -> torch.Tensor:
    """Keys or values, (n_kv_heads K, D) -> (n_head K, D): each head as often as heads of queries share it."""
    by_head = part.unflatten(0, (hf.n_kv_heads, -1))
    return by_head.repeat_interleave(hf.model.n_head // hf.n_kv_heads, dim=0).flatten(0, 1)


def padding_notes(path: Path, hf: HFConfig, n_ids: int, n_added: int = 0) -> list[str]:
    """A line about rows of the embedding without an id, which are cut off. Raises BadInputError for ids without a row.

    Who trains with a vocabulary of 151,669 ids may round it up to 151,936 rows, for speed.
    """
    if n_ids - n_added > hf.vocab_size:
        raise BadInputError(
            f"{shown(path)}: the tokenizer has {n_ids:,} ids, the model's vocab_size is only {hf.vocab_size:,}; "
            "they do not belong together",
            code="tokenizer-larger-than-vocab",
        )
    n_cut = max(0, hf.vocab_size - n_ids)
    return [f"{n_cut:,} rows of the embedding that stand for no token were cut off."] if n_cut else []


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape)) or "a single number"
