"""A corpus in shards as a token store, of which only the validation text and the first training shard are at hand.

The index of a corpus that a run has used is kept in the cache beside the token stores, with where the corpus is, so
that resuming, reports and other ranks find it by its name.
"""

import json
from pathlib import Path

import numpy as np

from tiny_gpt.config import DataConfig
from tiny_gpt.data.progress import Preparation, finish
from tiny_gpt.data.readers.limits import parse_size
from tiny_gpt.data.token_shards.index import CorpusIndex, SplitShards, corpus_location, is_address, parse_index
from tiny_gpt.data.token_shards.places import incomplete_shards, place_of, read_index, shown_location
from tiny_gpt.data.token_shards.reader import ShardedIds
from tiny_gpt.data.token_store import Tokens, TokenStore, store_folder
from tiny_gpt.errors import BadInputError, TinyGPTError, UsageError
from tiny_gpt.files import atomic_write, write_error

KEPT_INDEX = "corpus.json"


def sole_corpus(sources: tuple[str, ...]) -> str | None:
    """The location of the corpus in shards that is the only source; None for a text."""
    return corpus_location(sources[0]) if len(sources) == 1 else None


def open_corpus(location: str, config: DataConfig, stores: Path) -> Preparation[tuple[TokenStore, str]]:
    """The corpus at `location`, and the name under which its index is kept in the folder `stores`.

    Raises UsageError for `--val`, BadInputError and OutOfResourcesError.
    """
    if config.val:
        raise UsageError(
            "--val: a corpus in shards has a validation text of its own; give --val when the shards are written",
            code="val-and-shards",
        )
    index = yield from read_index(location)
    if not is_address(location) and (missing := incomplete_shards(index, location)):
        raise BadInputError(
            f"{len(missing):,} shards in {location} are not there or incomplete, such as {missing[0]}; copy them again",
            code="shards-incomplete",
        )
    folder = store_folder(stores, "shards", location, index.sha256)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / KEPT_INDEX) as file:
            file.write(json.dumps({"location": location, "index": index.to_dict()}).encode())
    except OSError as error:
        raise write_error(folder, error) from error
    return (yield from _open(index, location, config)), folder.name


def open_kept_corpus(folder: Path, config: DataConfig) -> TokenStore | None:
    """The corpus whose index is kept in `folder`; None if there is none, or its shards are not there any more."""
    try:
        kept = json.loads((folder / KEPT_INDEX).read_bytes())
        index = parse_index(json.dumps(kept["index"]).encode(), str(folder))
        return finish(_open(index, str(kept["location"]), config))
    except (OSError, ValueError, KeyError, TypeError, TinyGPTError):
        return None


def _open(index: CorpusIndex, location: str, config: DataConfig) -> Preparation[TokenStore]:
    place = place_of(location, parse_size(config.shard_cache, "--shard-cache"))
    vocab_size = index.tokenizer.vocab_size
    train = ShardedIds(index.train, index.dtype, vocab_size, place)
    first = yield from train.first()
    parts = []
    for shard in index.val.shards:  # 10 MB of text at most for each text that the corpus was made of
        part = ShardedIds(SplitShards(shards=(shard,)), index.dtype, vocab_size, place)
        parts.append((yield from part.first()))
    val = parts[0] if len(parts) == 1 else np.concatenate(parts)
    size = f"{len(index.train.shards):,} shards with {len(train):,} tokens"
    note = f"{shown_location(location)}: {size}; train_loss is that of the first shard"
    about = index.about | {"skipped": [note, *index.about["notes"]], "val_also_in_train": 0.0}  # the notes tell of both
    return TokenStore(
        index.tokenizer,
        Tokens(first, index.train.n_bytes, train),
        Tokens(val, index.val.n_bytes),
        about,
        index.sha256,
    )
