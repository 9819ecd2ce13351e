"""Token ids on disk, memory-mapped: a folder with train.bin, val.bin and, written last, manifest.json.

The folder's name is a hash of the text and the tokenizer, so a later run of the same text finds it and a changed
text gets a new one. A store is built beside and renamed: it is whole or it is not there.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.data.tokenizer import Tokenizer, to_utf8
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.files import cannot_write, sha256_of, sync_folder, sync_to_disk

FORMAT_VERSION = 1
# Between two documents stands an empty line.
SEPARATOR = "\n\n"
REMEDY = "name another folder for tiny_gpt's cache in the environment variable TINY_GPT_CACHE"


@dataclass(frozen=True)
class Tokens:
    """The ids of one split, and the UTF-8 bytes that they stand for."""

    ids: NDArray[np.unsignedinteger]
    n_bytes: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Part:
    n_tokens: int
    n_bytes: int
    sha256: str


def store_key(splits: Sequence[Sequence[str]], tokenizer: Tokenizer) -> str:
    """A name for the ids of this text under this tokenizer; another text or tokenizer has another."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, tokenizer.to_dict()]).encode())
    for texts in splits:
        for text in texts:
            encoded = to_utf8(text)
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        digest.update(b"end of split")
    return digest.hexdigest()[:32]


def open_or_build(
    folder: Path, train: Sequence[str], val: Sequence[str], tokenizer: Tokenizer
) -> tuple[Tokens, Tokens]:
    """The memory-mapped training and validation tokens, from `folder` if whole there, else encoded anew.

    Raises OutOfResourcesError when they cannot be written.
    """
    found = _open(folder)
    if found is None:
        _build(folder, {"train": train, "val": val}, tokenizer)
        found = _open(folder)
    if found is None:
        raise OutOfResourcesError(f"{folder} does not hold what was just written: the disk is faulty; {REMEDY}")
    return found


def _open(folder: Path) -> tuple[Tokens, Tokens] | None:
    """The tokens stored in `folder`; None if there are none, or something other than us has damaged them."""
    try:
        return _open_whole(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_whole(folder: Path) -> tuple[Tokens, Tokens]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest.pop("sha256") != _sha256_of_json(manifest):
        raise ValueError(f"{folder / 'manifest.json'} is damaged")
    train, val = (
        _open_part(folder / f"{name}.bin", manifest["dtype"], _Part(**manifest[name])) for name in ("train", "val")
    )
    return train, val


def _open_part(path: Path, dtype: str, part: _Part) -> Tokens:
    if part.n_tokens == 0:
        return Tokens(np.zeros(0, dtype=np.dtype(dtype)), 0)
    if sha256_of(path) != part.sha256:
        raise ValueError(f"{path} is damaged")
    return Tokens(np.memmap(path, dtype=np.dtype(dtype), mode="r", shape=(part.n_tokens,)), part.n_bytes)


def _build(folder: Path, splits: dict[str, Sequence[str]], tokenizer: Tokenizer) -> None:
    dtype = np.dtype(np.min_scalar_type(tokenizer.vocab_size - 1))
    beside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        parts = {
            name: asdict(_write_part(beside / f"{name}.bin", dtype, texts, tokenizer)) for name, texts in splits.items()
        }
        manifest = {
            "format_version": FORMAT_VERSION,
            "dtype": dtype.name,
            "tokenizer": tokenizer.to_dict(),
            **parts,
        }
        manifest["sha256"] = _sha256_of_json(manifest)
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _give_name(beside, folder)
    except OSError as error:
        if _open(folder) is None:
            raise cannot_write(folder, error, REMEDY) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def _give_name(beside: Path, folder: Path) -> None:
    """Rename `beside` to `folder`, unless another run has built the same store there meanwhile."""
    try:
        os.rename(beside, folder)
    except OSError:  # something stands there
        if _open(folder) is not None:
            return
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(beside, folder)
    sync_folder(folder.parent)


def _sha256_of_json(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _write_part(path: Path, dtype: np.dtype, texts: Iterable[str], tokenizer: Tokenizer) -> _Part:
    n_tokens = n_bytes = 0
    with open(path, "wb") as file:
        for i, text in enumerate(texts):
            text = SEPARATOR + text if i else text
            ids = tokenizer.encode(text)
            file.write(ids.astype(dtype).tobytes())
            n_tokens, n_bytes = n_tokens + len(ids), n_bytes + len(to_utf8(text))
        file.flush()
        sync_to_disk(file.fileno())
    return _Part(n_tokens, n_bytes, sha256_of(path))
