"""Write a text as shards into a folder, or add it to the corpus there.

A corpus larger than this disk is written text by text: each is read, encoded with the tokenizer of the first one,
written and, where nothing else uses its token ids, removed from the cache.
"""

import hashlib
import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from tiny_gpt.config import DataConfig
from tiny_gpt.data.prepare import Dataset, prepare, stores_folder
from tiny_gpt.data.progress import Notice, Preparation, StageProgress, finish
from tiny_gpt.data.token_shards.index import CorpusIndex, TokenShard, corpus_location, refuse_corpus, with_about
from tiny_gpt.data.token_shards.places import read_index
from tiny_gpt.data.token_store import MANIFEST, Tokens
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import atomic_write, ensure_writable_folder

# Smaller shards would hold few sequences, of which the last one is never read.
MIN_SHARD_BYTES, MAX_SHARD_BYTES = 10_000, 10_000_000_000
PIECE_TOKENS = 1 << 22


def write_shards(config: DataConfig, folder: Path, shard_bytes: int) -> Preparation[CorpusIndex]:
    """Write the text of `config` as shards of about `shard_bytes` into `folder`, after those that are there.

    Raises BadInputError for a text that is there already, what `prepare` raises, and OutOfResourcesError.
    """
    if not MIN_SHARD_BYTES <= shard_bytes <= MAX_SHARD_BYTES:
        raise BadInputError(
            f"--shard-size {shard_bytes:,} bytes: must be between 10kB and 10GB", code="shard-size-out-of-range"
        )
    for source in config.data:
        refuse_corpus(source)
    location = corpus_location(str(folder))
    index = finish(read_index(location)) if location else None
    ensure_writable_folder(folder, "--shards")
    started = time.time()
    dataset = yield from prepare(config, 1, index.tokenizer if index else None)
    text_sha256 = str(dataset.identity["text_sha256"])
    if index is None:
        ids = dataset.train.ids
        index = CorpusIndex(dataset.tokenizer, ids.dtype.newbyteorder("<"))
    elif text_sha256 in index.texts:
        raise BadInputError(
            f"the shards in {folder} hold this text already; give another text to add, or another folder",
            code="text-in-shards-already",
        )
    else:
        yield Notice(f"adding to the {len(index.train.shards):,} shards in {folder}, with their tokenizer")
    for name in ("train", "val"):
        split, tokens = getattr(index, name), getattr(dataset, name)
        shards = yield from _write_split(tokens, name, len(split.shards), folder, index.dtype, shard_bytes)
        index = replace(index, **{name: split.plus(tokens.n_bytes, shards)})
    about = {"n_characters": dataset.n_characters, "n_documents": dataset.n_documents, "notes": dataset.notes}
    index = replace(with_about(index, about), texts=(*index.texts, text_sha256))
    index.write(folder)
    _forget_store(dataset, started)
    return index


def _write_split(
    tokens: Tokens, name: str, n_before: int, folder: Path, dtype: np.dtype, shard_bytes: int
) -> Preparation[list[TokenShard]]:
    """Shards of equal size, so that none is very short."""
    n_shards = max(1, round(len(tokens) * dtype.itemsize / shard_bytes))
    bounds = np.linspace(0, len(tokens), n_shards + 1).astype(int).tolist()
    shards = []
    for number, (start, end) in enumerate(pairwise(bounds), n_before):
        digest, path = hashlib.sha256(), folder / f"{name}-{number:06}.bin"
        with atomic_write(path) as file:
            for piece_start in range(start, end, PIECE_TOKENS):
                piece = tokens.ids[piece_start : min(end, piece_start + PIECE_TOKENS)].astype(dtype).tobytes()
                file.write(piece)
                digest.update(piece)
                done_bytes = piece_start * dtype.itemsize + len(piece)
                yield StageProgress("writing shards", done_bytes, len(tokens) * dtype.itemsize)
        shards.append(TokenShard(path.name, end - start, digest.hexdigest()))
    return shards


def _forget_store(dataset: Dataset, started: float) -> None:
    """Delete the token store of a text that was built for its shards alone: a large one would fill the disk."""
    folder = stores_folder() / str(dataset.identity["store"])
    manifest = folder / MANIFEST
    if manifest.exists() and manifest.stat().st_mtime >= started:
        shutil.rmtree(folder, ignore_errors=True)
