"""Reads the checkpoints of nanoGPT (github.com/karpathy/nanoGPT, train.py): ckpt.pt, safe for untrusted files.

Such a file holds the weights of a GPT-2 under Hugging Face's names, not transposed, perhaps without biases, and the
settings `model_args`. The tokenizer is elsewhere: GPT-2's, or for single characters meta.pkl of the data folder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tiny_gpt.errors import BadInputError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.bounded_json import shown
from tiny_gpt.model_io.finite import require_finite
from tiny_gpt.model_io.foreign_pickle import read_foreign_pickle
from tiny_gpt.model_io.hf_config import HFConfig, read_config
from tiny_gpt.model_io.hf_tokenizer import read_tokenizer
from tiny_gpt.model_io.hf_weights import HFWeights, padding_notes
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.safe_archive import SafeArchive
from tiny_gpt.model_io.safe_pickle import StoredTensor
from tiny_gpt.model_io.stored_model import Progress, read_torch_pickle
from tiny_gpt.tokenizer.base import Tokenizer
from tiny_gpt.tokenizer.byte_char import CharTokenizer

_META_FILE = "meta.pkl"
MAX_META_BYTES = 1 << 22
_COMPILED = "_orig_mod."
_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
# How far below the mean the logits of unknown characters are, and the texts that show in which direction that is.
UNKNOWN_LOGIT, N_RANDOM_TEXTS, MAX_RANDOM_TOKENS = 20.0, 16, 64


class _Shape(NamedTuple):
    shape: tuple[int, ...]

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def get_dtype(self) -> str:
        return "F32"


def is_nanogpt_archive(path: Path) -> bool:
    """Whether `path` may be such a checkpoint: a file that torch.save wrote."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def read_nanogpt(path: Path, tokenizer_path: Path | None, device: torch.device) -> LoadedModel:
    """The model of a checkpoint, ready to generate on `device`; its run_config tells where it came from.

    `tokenizer_path`: meta.pkl, or the folder of a tokenizer.json; without it, either is looked for beside the
    checkpoint. Raises BadInputError saying why when something is damaged, missing, or no checkpoint of nanoGPT.
    """
    with _opened(path) as (archive, content):
        weights = {name.removeprefix(_COMPILED): weight for name, weight in content["model"].items()}
        hf = _settings(content["model_args"], shown(path))
        tokenizer, rows, notes = _tokenizer(path, tokenizer_path, hf)
        hf = replace(hf, is_tied=False, vocab_size=hf.vocab_size if rows is None else len(rows))
        source = HFWeights(path, [(path, _Tensors(archive, weights, hf, rows, path))], hf.model.architecture)
        source.check(hf)
        notes += padding_notes(path, hf, tokenizer.vocab_size)
        model = GPT(hf.model, tokenizer.vocab_size)
        try:
            with torch.no_grad():
                source.copy_into(model, hf)
        except (OSError, ValueError) as error:
            raise BadInputError(f"{shown(path)} is damaged: {shown(error)}", code="nanogpt-damaged") from error
    if rows is not None:
        _make_unlikely(model, rows < 0)
    notes.append(
        "nanoGPT computes GELU exactly, tiny_gpt in GPT-2's tanh form: probabilities differ in the third digit."
    )
    run_config: dict[str, Any] = {
        "imported_from": shown(path.resolve().name),
        "imported_model_type": "nanogpt",
        "import_notes": tuple(notes),
    }
    return LoadedModel(model.to(device).eval(), tokenizer, Progress(0, 0, 0.0, 0.0, 0.0), run_config)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[SafeArchive, dict[str, Any]]]:
    with open(path, "rb") as file:
        try:
            archive = SafeArchive(file)
            # Older versions of torch did not state the byte order.
            content = read_torch_pickle(archive, read_foreign_pickle, default_byteorder=b"little")
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"{shown(path)} is not a checkpoint of nanoGPT, or is cut short or damaged ({shown(error)}); name "
                "nanoGPT's ckpt.pt, a GGUF file, or a folder in Hugging Face's format",
                code="nanogpt-unreadable",
            ) from error
        is_ours = isinstance(content, dict) and content.get("format") == "tiny_gpt model"
        if is_ours:
            raise BadInputError(
                f"{shown(path)} is a model file of tiny_gpt already; use it as it is", code="import-of-a-model-file"
            )
        if not (isinstance(content, dict) and all(isinstance(content.get(n), dict) for n in ("model", "model_args"))):
            raise BadInputError(
                f"{shown(path)} is a file of torch without model_args, so its architecture is unknown; name nanoGPT's "
                "ckpt.pt, or a folder in Hugging Face's format",
                code="nanogpt-without-settings",
            )
        yield archive, content


def _settings(model_args: Mapping[str, Any], source: str) -> HFConfig:
    """nanoGPT's model_args as a config of GPT-2. Raises BadInputError."""
    names = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "block_size": "n_positions"}
    values = {theirs: model_args.get(name) for name, theirs in (names | {"vocab_size": "vocab_size"}).items()}
    return read_config({"model_type": "gpt2", **values}, source)


def _tokenizer(path: Path, given: Path | None, hf: HFConfig) -> tuple[Tokenizer, Any, list[str]]:
    """(tokenizer, for each of its ids the row in the file or -1, notes); None for rows that stay as they are."""
    place = given or path.parent
    meta = place if place.is_file() else place / _META_FILE
    if meta.is_file() and meta.suffix != ".json":
        characters = _characters(meta, hf.vocab_size)
        tokenizer = CharTokenizer("".join(sorted(c for c in characters if not c.isascii())))
        known = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size)}
        rows = np.full(tokenizer.vocab_size, -1)
        for row, character in enumerate(characters):
            rows[known[character.encode()]] = row
        note = f"The vocabulary has {len(characters)} characters; others are read, but rarely generated."
        return tokenizer, rows, [note]
    folder = place.parent if place.is_file() else place
    try:
        found = read_tokenizer(folder)
    except BadInputError as error:
        raise BadInputError(
            f"{shown(path)} has no tokenizer; give the {_META_FILE} of its text with --tokenizer, or for GPT-2 "
            f"tokens a folder with GPT-2's tokenizer.json ({error})",
            code="nanogpt-without-tokenizer",
        ) from error
    return found.tokenizer, None, found.notes


def _characters(meta: Path, vocab_size: int) -> list[str]:
    """The characters of a meta.pkl in the order of their ids. Raises BadInputError."""
    try:
        data = meta.read_bytes()
        if len(data) > MAX_META_BYTES:
            raise ValueError("it is too long")
        itos = read_foreign_pickle(data, {})["itos"]
        characters = [itos[i] for i in range(len(itos))]
        if not all(isinstance(c, str) and len(c) == 1 for c in characters) or len(set(characters)) != len(itos):
            raise ValueError("it is not made of single characters")
        "".join(characters).encode()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{shown(meta)} is not the {_META_FILE} of a text of characters ({shown(error)})",
            code="nanogpt-meta-invalid",
        ) from error
    if len(characters) != vocab_size:
        raise BadInputError(
            f"{shown(meta)} has {len(characters):,} characters, the model {vocab_size:,}; they do not belong together",
            code="nanogpt-meta-of-another-model",
        )
    return characters


class _Tensors:
    """The tensors of a checkpoint in Hugging Face's layout, read as safetensors' `safe_open` is."""

    def __init__(self, archive: SafeArchive, weights: Mapping[str, Any], hf: HFConfig, rows: Any, path: Path) -> None:
        self._archive, self._rows, self._path = archive, rows, path
        self._weights = {name: weight for name, weight in weights.items() if isinstance(weight, StoredTensor)}
        self._shapes = {name: self._shape_of(name, weight) for name, weight in self._weights.items()}
        # With bias=False the file has none at all: they are zero.
        for name, shape in list(self._shapes.items()):
            if name.endswith(".weight") and (name.startswith("transformer.h.") or ".ln_f." in name):
                self._shapes.setdefault(f"{name.removesuffix('.weight')}.bias", shape[-1:])

    def keys(self) -> list[str]:
        return list(self._shapes)

    def get_slice(self, name: str) -> _Shape:
        return _Shape(self._shapes[name])

    def get_tensor(self, name: str) -> torch.Tensor:
        """Raises OSError and ValueError, and BadInputError for NaN and infinite numbers."""
        if name not in self._weights:
            return torch.zeros(self._shapes[name])
        weight = self._weights[name]
        values = np.empty(weight.shape, dtype=np.float32)
        self._archive.read_into(weight.member, values.data.cast("B"))
        require_finite(name, values, shown(self._path))
        if self._rows is not None and name in (_EMBEDDING, _HEAD):
            known = values[np.maximum(self._rows, 0)]
            values = np.where(self._rows[:, None] < 0, values.mean(0), known)
        return torch.from_numpy(np.ascontiguousarray(values.T if self._is_linear(name) else values))

    def _shape_of(self, name: str, weight: StoredTensor) -> tuple[int, ...]:
        if self._rows is not None and name in (_EMBEDDING, _HEAD):
            return (len(self._rows), *weight.shape[1:])
        return weight.shape[::-1] if self._is_linear(name) else weight.shape

    def _is_linear(self, name: str) -> bool:
        return name.startswith("transformer.h.") and len(self._weights[name].shape) == 2


def _make_unlikely(model: GPT, is_unknown: Any) -> None:
    """Give the ids that the model does not know rows of the head with which they are hardly ever written.

    Least squares find the direction in which the states before the head, over random texts, have about the same
    length; the rows are the mean of the others, minus UNKNOWN_LOGIT along it.
    """
    unknown = torch.from_numpy(np.flatnonzero(is_unknown))
    known = np.flatnonzero(~is_unknown)
    shape = (N_RANDOM_TEXTS, min(model.config.block_size, MAX_RANDOM_TOKENS))
    ids_BT = torch.from_numpy(np.random.default_rng(0).choice(known, shape))
    states: list[torch.Tensor] = []
    hook = model.norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    model.eval()
    with torch.no_grad():
        model(ids_BT)
        hook.remove()
        states_ND = states[0].flatten(0, 1).double()
        products_DD = states_ND.T @ states_ND + 1e-3 * len(states_ND) * torch.eye(states_ND.shape[1])
        direction_D = torch.linalg.solve(products_DD, states_ND.sum(0)).float()
        head_VD = model.head.weight
        head_VD[unknown] = head_VD[torch.from_numpy(known)].mean(0) - UNKNOWN_LOGIT * direction_D
