"""Opens a model in a GGUF file, llama.cpp's format: one of our architectures, its weights dequantized to fp32.

The file is untrusted: sizes are checked before memory is allocated, and a model that our network would compute
differently is refused. Settings and weights are given Hugging Face's names, then hf_config.py and hf_weights.py do the
rest.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiny_gpt.config.architectures import ARCHITECTURES
from tiny_gpt.errors import BadInputError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.bounded_json import shown
from tiny_gpt.model_io.gguf_architectures import GGUF_ARCHITECTURES, NAMES
from tiny_gpt.model_io.gguf_file import GGUFFile
from tiny_gpt.model_io.gguf_tokenizer import read_gguf_tokenizer
from tiny_gpt.model_io.hf_architectures import HF_ARCHITECTURES, what_differs
from tiny_gpt.model_io.hf_config import HFConfig, read_config
from tiny_gpt.model_io.hf_weights import HFWeights, padding_notes
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.stored_model import Progress

# Keys after the architecture's name, and the keys of config.json that they become, in GPT-2's class and in the others.
CONFIG_KEYS = {
    "context_length": ("n_positions", "max_position_embeddings"),
    "embedding_length": ("n_embd", "hidden_size"),
    "block_count": ("n_layer", "num_hidden_layers"),
    "feed_forward_length": ("n_inner", "intermediate_size"),
    "attention.head_count": ("n_head", "num_attention_heads"),
    "attention.head_count_kv": ("", "num_key_value_heads"),
    "attention.key_length": ("", "head_dim"),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", ""),
    "attention.layer_norm_rms_epsilon": ("", "rms_norm_eps"),
    "rope.freq_base": ("", "rope_theta"),
}
# Keys that say nothing which our network computes otherwise.
PASSED_OVER = ("vocab_size", "attention.value_length", "rope.dimension_count", "rope.scaling.type")
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


def read_gguf(path: Path, device: torch.device, compute_dtype: torch.dtype = torch.float32) -> LoadedModel:
    """The model of a file, ready to generate on `device`; its run_config tells where it came from.

    Raises BadInputError saying why when it is damaged, or of a kind that tiny_gpt does not compute.
    """
    with open(path, "rb") as opened:
        file = GGUFFile(path, opened)
        hf = read_shape(file)
        weights = HFWeights(path, [(path, _Tensors(file, hf))], hf.model.architecture)
        weights.check(hf)
        try:
            tokenizer, notes, n_added = read_gguf_tokenizer(file.metadata)
        except BadInputError as error:
            raise BadInputError(f"{shown(path)}: {error}", code=error.code) from error
        notes += padding_notes(path, hf, tokenizer.vocab_size, n_added)
        model = GPT(hf.model, tokenizer.vocab_size, compute_dtype)
        try:
            weights.copy_into(model, hf)
        except OSError as error:
            raise BadInputError(f"{shown(path)}: {shown(error)}; download it again", code="gguf-unreadable") from error
    run_config: dict[str, Any] = {
        "imported_from": shown(path.name),
        "imported_model_type": HF_ARCHITECTURES[hf.model.architecture].model_type,
        "import_notes": tuple(notes),
    }
    return LoadedModel(model.to(device).eval(), tokenizer, Progress(0, 0, 0.0, 0.0, 0.0), run_config)


def read_shape(file: GGUFFile) -> HFConfig:
    """What the metadata says about the network. Raises BadInputError for what ours cannot compute."""
    metadata, source = file.metadata, shown(file.path)
    name = metadata.get("general.architecture")
    ours = {row.name: architecture for architecture, row in GGUF_ARCHITECTURES.items()}
    if not isinstance(name, str) or name not in ours:
        raise BadInputError(
            f"{source}: its architecture is {shown(repr(name), 40)}, but tiny_gpt supports only {', '.join(ours)}"
            f"{what_differs(str(name))}",
            code="gguf-architecture-unsupported",
        )
    architecture = ours[name]
    column = 0 if ARCHITECTURES[architecture].positions == "learned" else 1
    values: dict[str, Any] = {
        "model_type": HF_ARCHITECTURES[architecture].model_type,
        "tie_word_embeddings": OUTPUT not in file.tensors,
        "vocab_size": file.tensors[EMBEDDING].shape[0] if EMBEDDING in file.tensors else 0,
    }
    for key, value in metadata.items():
        short = key.removeprefix(f"{name}.")
        if short == key:
            continue
        if short not in CONFIG_KEYS and not _is_harmless(short, value, metadata, name):
            raise BadInputError(
                f"{source}: {shown(key)} is {shown(repr(value), 40)}, which tiny_gpt does not compute",
                code="gguf-setting-unsupported",
            )
        if short in CONFIG_KEYS and CONFIG_KEYS[short][column]:
            values[CONFIG_KEYS[short][column]] = value
    if column == 1:  # what llama.cpp takes where a key is missing
        values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
        values.setdefault("head_dim", _default_head_dim(metadata, name))
    return read_config(values, source)


def _is_harmless(short: str, value: Any, metadata: dict[str, Any], name: str) -> bool:
    head_dim = metadata.get(f"{name}.attention.key_length")
    if head_dim is None:
        head_dim = _default_head_dim(metadata, name)
    if short in ("rope.dimension_count", "attention.value_length"):  # fewer would rotate only a part of each head
        return bool(value == head_dim)
    if short == "rope.scaling.type":
        return bool(value == "none")
    return short in PASSED_OVER


def _default_head_dim(metadata: dict[str, Any], name: str) -> int:
    counts = (metadata.get(f"{name}.embedding_length"), metadata.get(f"{name}.attention.head_count"))
    width, n_head = (count if type(count) is int and count > 0 else 1 for count in counts)
    return width // n_head


class _Slice:
    """What safetensors tells of a tensor before it is read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def get_dtype(self) -> str:
        return "F32"

    def get_shape(self) -> tuple[int, ...]:
        return self._shape


class _Tensors:
    """The tensors of a GGUF file under Hugging Face's names and in its layout, read as safetensors' `safe_open` is."""

    def __init__(self, file: GGUFFile, hf: HFConfig) -> None:
        self._file, self._hf = file, hf
        self._hf_row = HF_ARCHITECTURES[hf.model.architecture]
        self._row = GGUF_ARCHITECTURES[hf.model.architecture]
        self._names = {self._hf_name(name): name for name in file.tensors}

    def keys(self) -> list[str]:
        return list(self._names)

    def get_slice(self, hf_name: str) -> _Slice:
        shape = self._file.tensors[self._names[hf_name]].shape
        return _Slice(shape[::-1] if self._is_transposed(self._names[hf_name]) else shape)

    def get_tensor(self, hf_name: str) -> torch.Tensor:
        """Raises BadInputError for NaN and infinite numbers, and OSError."""
        name = self._names[hf_name]
        values = self._file.read(name)
        if not np.isfinite(values).all():
            raise BadInputError(
                f"{shown(self._file.path)}: the weight {shown(name)} holds NaN or infinity; download it again",
                code="gguf-weight-not-finite",
            )
        if self._row.rotates_neighbors and name.endswith(("attn_q.weight", "attn_k.weight")):
            n_head = self._hf.model.n_head if name.endswith("attn_q.weight") else self._hf.n_kv_heads
            by_pair = values.reshape(n_head, -1, 2, values.shape[1])  # the inverse of export's _pair_neighbors
            values = by_pair.swapaxes(1, 2).reshape(values.shape)
        return torch.from_numpy(np.ascontiguousarray(values.T if self._is_transposed(name) else values))

    def _is_transposed(self, name: str) -> bool:
        return self._hf_row.transposed and name.startswith("blk.") and len(self._file.tensors[name].shape) == 2

    def _hf_name(self, name: str) -> str:
        """blk.0.attn_q.weight -> layers.0.self_attn.q_proj.weight; a name without a counterpart as it is."""
        part, _, kind = name.rpartition(".")
        block = ""
        if part.startswith("blk.") and part.count(".") == 2:
            _, layer, part = part.split(".")
            block = f"{self._hf_row.blocks}.{layer}."
        ours = {theirs: our for our, theirs in NAMES.items()} | {f"attn_{x}": f"attention.{x}" for x in "qkv"}
        module = ours.get(part)
        if module is None or module not in self._hf_row.names or not kind:
            return name
        return f"{block}{self._hf_row.names[module]}.{kind}"
