"""From source specs to a tokenizer and memory-mapped token ids: the whole data pipeline in one call."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiny_gpt.config import TOKENIZER_SETTINGS, DataConfig
from tiny_gpt.data.choose_tokenizer import (
    build_tokenizer,
    tokenizer_file_sha256,
    tokenizer_sha256,
    train_shared_tokenizer,
)
from tiny_gpt.data.corpus import counted_lines, read_splits, skipped_lines
from tiny_gpt.data.overlap import HeldOut, val_overlap
from tiny_gpt.data.progress import Preparation
from tiny_gpt.data.readers.base import READING_VERSION
from tiny_gpt.data.sources.files import content_hash
from tiny_gpt.data.sources.resolve import Sources, resolve
from tiny_gpt.data.token_shards.opened import open_corpus, open_kept_corpus, sole_corpus
from tiny_gpt.data.token_store import (
    UNREADABLE,
    Tokens,
    TokenStore,
    build_store,
    open_store,
    open_tokenizer,
    store_folder,
    temporary_build_folder,
)
from tiny_gpt.errors import BadInputError, OutOfResourcesError
from tiny_gpt.files import CACHE_REMEDY, atomic_write, cache_folder, sha256_of_json
from tiny_gpt.tokenizer.base import Tokenizer, tokenizer_from_dict

# From this fraction on, the user is told that the validation text also occurs in the training text.
MIN_REPORTED_OVERLAP = 0.01
STORE_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Dataset:
    """A text ready for training, with what the user is told about it."""

    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    n_characters: int
    n_documents: int
    notes: list[str]
    """What was skipped and what else the user should know, one line each."""
    sources: tuple[str, ...]
    """The source specs as used; the same specs give the same text again."""
    identity: dict[str, Any]
    """Hashes that identify this text under this tokenizer, and the name of its token store; plain JSON types."""


def prepare(
    config: DataConfig, block_size: int, tokenizer: Tokenizer | None = None, held_out: HeldOut | None = None
) -> Preparation[Dataset]:
    """Read, split and tokenize the text of `config`, or find its tokens in the cache.

    Leaves out passages of `held_out`, the validation text of another corpus; not from a corpus in shards.

    Of a corpus in shards, the index, the validation text and the first shard are read. A `tokenizer` that is given,
    such as that of a model to be trained further, replaces the one `config` names. Raises BadInputError for unusable
    sources and if a split has fewer than block_size + 1 tokens, and OutOfResourcesError if the cache cannot be written.
    """
    if location := sole_corpus(config.data):
        return (yield from _prepare_corpus(location, config, block_size, tokenizer))
    sources = yield from resolve(config.data)
    if config.val:
        val_sources = yield from resolve(config.val)
        sources.val_files = val_sources.files
        sources.skipped += val_sources.skipped
        sources.examples = val_sources.examples | sources.examples
    train_hash = yield from content_hash(sources.files)
    val_hash = yield from content_hash(sources.val_files)
    # Everything that the tokens depend on. Not the specs: the same files under another path have the same tokens.
    folder = store_folder(
        stores_folder(),
        train_hash,
        val_hash,
        _tokenizer_key(config.tokenizer, tokenizer),
        config.vocab_size,
        config.text_field,
        config.encoding,
        config.max_unpacked,
        config.val_fraction,
        READING_VERSION,
        *([held_out.sha256] if held_out else []),
    )
    store = open_store(folder)
    if store is None:  # never built, or damaged since
        with temporary_build_folder(folder) as build_folder:
            yield from _build(config, sources, build_folder, folder, tokenizer, held_out)
        store = open_store(folder)
    if store is None:
        raise OutOfResourcesError(
            f"{folder} does not contain what was just written: the disk is faulty; {CACHE_REMEDY}",
            code="token-store-corrupt-after-write",
        )
    _require_one_block(store, block_size, is_block_fixed=tokenizer is not None)
    skipped = counted_lines("skipped", sources.skipped, sources.examples)
    return _dataset(store, folder.name, tuple(sources.specs), skipped)


def shared_tokenizer_of(own: DataConfig, other: DataConfig) -> Preparation[Tokenizer]:
    """A tokenizer for a person's `own` text and `other` text, trained on as much of one as of the other: the model
    learns most of its words from the other text, but is judged by its own. Trained once and kept in the cache.

    Raises BadInputError for unusable sources, and OutOfResourcesError if the cache cannot be written.
    """
    sources: list[Sources] = []
    key: list[Any] = [READING_VERSION, own.vocab_size]
    for config in (own, other):
        sources.append((yield from resolve(config.data)))
        text_hash = yield from content_hash(sources[-1].files)
        key += [text_hash, config.text_field, config.encoding, config.max_unpacked, config.val_fraction]
    path = stores_folder() / f"tokenizer-{sha256_of_json(key)[:32]}.json"
    if tokenizer := _read_tokenizer(path):
        return tokenizer
    with temporary_build_folder(path) as folder:
        splits = []
        for name, config, found in zip(("own", "other"), (own, other), sources, strict=True):
            (folder / name).mkdir()
            _, train, _ = yield from read_splits(replace(config, val=()), found, folder / name)
            splits.append(train)
        tokenizer = train_shared_tokenizer(own, *splits)
    with atomic_write(path) as file:
        file.write(json.dumps(tokenizer.to_dict()).encode())
    return tokenizer


def _read_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer kept at `path`; None if it is absent or damaged."""
    try:
        return tokenizer_from_dict(json.loads(path.read_bytes()))
    except UNREADABLE:
        return None


def stores_folder() -> Path:
    """Where token stores are kept, and the indexes of corpora in shards."""
    return cache_folder() / "tokens"


def open_stored_dataset(config: DataConfig, store_name: str) -> Dataset | None:
    """The dataset of `config` from the token store or the corpus of that name, without its sources; None if there is
    none."""
    if not STORE_NAME.fullmatch(store_name):
        return None
    folder = stores_folder() / store_name
    store = open_store(folder) or open_kept_corpus(folder, config)
    return _dataset(store, store_name, config.data, []) if store else None


def open_stored_tokenizer(store_name: str) -> Tokenizer | None:
    """The tokenizer of the token store of that name; None if there is none."""
    return open_tokenizer(stores_folder() / store_name) if STORE_NAME.fullmatch(store_name) else None


def _prepare_corpus(
    location: str, config: DataConfig, block_size: int, tokenizer: Tokenizer | None
) -> Preparation[Dataset]:
    """What `prepare` returns, for the corpus in shards at `location`."""
    store, store_name = yield from open_corpus(location, config, stores_folder())
    if tokenizer and tokenizer_sha256(tokenizer) != tokenizer_sha256(store.tokenizer):
        raise BadInputError(
            f"{config.data[0]}: the shards are in the tokens of another tokenizer than the model's; write shards with "
            "the model's tokenizer.json (tiny-gpt data TEXT --tokenizer FILE --shards FOLDER), or name the text itself",
            code="shards-have-another-tokenizer",
        )
    _require_one_block(store, block_size, is_block_fixed=tokenizer is not None)
    return _dataset(store, store_name, config.data, [])


def _build(
    config: DataConfig,
    sources: Sources,
    build_folder: Path,
    folder: Path,
    tokenizer: Tokenizer | None,
    held_out: HeldOut | None,
) -> Preparation[None]:
    """Build the token store `folder`, by way of `build_folder`."""
    corpora, train, val = yield from read_splits(config, sources, build_folder, held_out)
    about = {
        "n_characters": sum(corpus.text.n_characters for corpus in corpora),
        "n_documents": sum(len(corpus.text.documents) for corpus in corpora),
        "skipped": skipped_lines(corpora),
        "val_also_in_train": val_overlap(train, val) or 0.0,  # a note is only about what was found
    }
    yield from build_store(build_folder, folder, train, val, tokenizer or build_tokenizer(config, train), about)


def _dataset(store: TokenStore, store_name: str, sources: tuple[str, ...], skipped: list[str]) -> Dataset:
    notes = [*store.about["skipped"], *skipped]
    if (overlap := store.about["val_also_in_train"]) >= MIN_REPORTED_OVERLAP:
        notes.append(
            f"{overlap:.0%} of the validation text also occurs in the training text: val_loss will look too good"
        )
    identity = {
        "train_tokens": len(store.train),
        "val_tokens": len(store.val),
        "vocab_size": store.tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer_sha256(store.tokenizer),
        "text_sha256": store.sha256,
        "store": store_name,
    }
    return Dataset(
        tokenizer=store.tokenizer,
        train=store.train,
        val=store.val,
        n_characters=store.about["n_characters"],
        n_documents=store.about["n_documents"],
        notes=notes,
        sources=sources,
        identity=identity,
    )


def _tokenizer_key(name: str, tokenizer: Tokenizer | None) -> str:
    """What stands for the tokenizer in a store's key: its hash if it exists already, else the name to train it by."""
    if tokenizer:
        return tokenizer_sha256(tokenizer)
    return name if name in TOKENIZER_SETTINGS else tokenizer_file_sha256(name)


def _require_one_block(store: TokenStore, block_size: int, is_block_fixed: bool) -> None:
    """Raise BadInputError if a split is shorter than one training window.

    `is_block_fixed`: the model exists already, so a smaller block size is no remedy.
    """
    n_train, n_val = len(store.train.ids), len(store.val)
    n_tokens = min(n_train, n_val)
    if n_tokens > block_size:
        return
    split = "training" if n_train < n_val else "validation"
    remedy = f", or shorter sequences with --block-size {n_tokens - 1}" if n_tokens > 1 and not is_block_fixed else ""
    model = " of the model that is trained further" if is_block_fixed else ""
    raise BadInputError(
        f"the text is too short: {store.about['n_characters']:,} characters leave {n_tokens:,} tokens for {split}, "
        f"and a sequence{model} takes {block_size + 1:,}; give more text{remedy}",
        code="text-too-short",
    )
