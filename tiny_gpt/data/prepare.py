"""From sources to a tokenizer and memory-mapped tokens: the way through this folder in one call."""

import re
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_gpt.config import TOKENIZER_SETTINGS, DataConfig
from tiny_gpt.data.corpus import Corpus, read_corpus
from tiny_gpt.data.overlap import share_also_in_training
from tiny_gpt.data.progress import PreparationEvent
from tiny_gpt.data.readers.formats import ReadOptions
from tiny_gpt.data.sources.resolve import Sources, fingerprint, resolve
from tiny_gpt.data.text_file import TextFile, TextSplit
from tiny_gpt.data.token_store import (
    Tokens,
    TokenStore,
    build_store,
    open_store,
    store_folder,
    temporary_build_folder,
    tokenizer_of,
)
from tiny_gpt.errors import BadInputError, OutOfResourcesError
from tiny_gpt.files import CACHE_REMEDY, cache_folder, sha256_of, sha256_of_json, user_path
from tiny_gpt.tokenizer.base import TOKENIZERS, Tokenizer
from tiny_gpt.tokenizer.bpe import BpeTokenizer

# A tokenizer learns from at most so much text, drawn evenly from all over it; more changes little and takes longer.
SAMPLE_BYTES = 32_000_000
# From this size of the training text on, pieces of words beat characters (docs/log.md, "the recipe auto").
MIN_BPE_BYTES = 100_000
# Validation text that the training text holds too is told from this share on.
TELLING_OVERLAP = 0.01
STORE_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Dataset:
    """A text ready to be learned, with the figures that a person is told about it."""

    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    n_characters: int
    n_documents: int
    notes: list[str]
    """What was skipped, and what else a person should know, a line each."""
    sources: tuple[str, ...]
    """The sources as they were used; naming these again gives the same text."""
    identity: dict[str, Any]
    """What tells this text under this tokenizer from any other, and where its tokens are stored; plain JSON types."""


def prepare(
    config: DataConfig, block_size: int, tokenizer: Tokenizer | None = None
) -> Generator[PreparationEvent, None, Dataset]:
    """Read, split, tokenize and store the text of `config`, or find it stored; yields how far it is.

    A `tokenizer` that is given, as that of a model to be trained further, takes the place of the one that `config`
    names. Raises BadInputError for unusable sources and for a text shorter than a block in either split, and
    OutOfResourcesError when the cache cannot be written.
    """
    sources = yield from resolve(config.data)
    if config.val:
        val_sources = yield from resolve(config.val)
        sources.val_files = val_sources.files
        sources.skipped += val_sources.skipped
    train_hash = yield from fingerprint(sources.files)
    val_hash = yield from fingerprint(sources.val_files)
    tokenizer_id = _tokenizer_id(config.tokenizer, tokenizer)
    how = (tokenizer_id, config.vocab_size, config.text_field, config.encoding, config.val_fraction)
    folder = store_folder(cache_folder() / "tokens", train_hash, val_hash, *how)
    store = open_store(folder)
    if store is None:
        with temporary_build_folder(folder) as place:
            yield from _build(config, sources, place, folder, tokenizer)
        store = open_store(folder)
    if store is None:
        raise OutOfResourcesError(f"{folder} does not hold what was just written: the disk is faulty; {CACHE_REMEDY}")
    _require_a_block(store, block_size, is_fixed=tokenizer is not None)
    skipped = [f"skipped {n:,}: {reason}" for reason, n in sources.skipped.items()]
    return _dataset(store, folder.name, tuple(sources.specs), skipped)


def open_stored_dataset(config: DataConfig, name: str) -> Dataset | None:
    """The tokens that were stored under `name` for `config`, its sources left alone; None if they are gone."""
    if not STORE_NAME.fullmatch(name):
        return None
    store = open_store(cache_folder() / "tokens" / name)
    return _dataset(store, name, config.data, []) if store else None


def open_stored_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer of the tokens that were stored under `name`; None if they are gone."""
    return tokenizer_of(cache_folder() / "tokens" / name) if STORE_NAME.fullmatch(name) else None


def _dataset(store: TokenStore, name: str, sources: tuple[str, ...], skipped: list[str]) -> Dataset:
    identity = {
        "train_tokens": len(store.train),
        "val_tokens": len(store.val),
        "vocab_size": store.tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer_sha256(store.tokenizer),
        "text_sha256": store.sha256,
        "store": name,
    }
    return Dataset(
        tokenizer=store.tokenizer,
        train=store.train,
        val=store.val,
        n_characters=store.about["n_characters"],
        n_documents=store.about["n_documents"],
        notes=_notes(store, skipped),
        sources=sources,
        identity=identity,
    )


def tokenizer_for(config: DataConfig, train: TextSplit) -> Tokenizer:
    """The tokenizer that `config` names, fitted to a sample of `train` where it has something to learn."""
    if config.tokenizer not in TOKENIZER_SETTINGS:
        return BpeTokenizer.from_file(user_path(config.tokenizer))
    name = auto_tokenizer(train.n_bytes) if config.tokenizer == "auto" else config.tokenizer
    vocab_size = config.vocab_size or default_vocab_size(train.n_bytes)
    return TOKENIZERS[name].train(train.sample(SAMPLE_BYTES), vocab_size)


def auto_tokenizer(n_bytes: int) -> str:
    """What `auto` stands for with a text of this size: pieces of words must be seen often to be learned."""
    return "bpe" if n_bytes >= MIN_BPE_BYTES else "char"


def default_vocab_size(n_bytes: int) -> int:
    """512 for a text of 1 MB and twice that for four times the text: each token must be seen often to be learned."""
    return next((size for size in (512, 1024, 2048, 4096) if size * size * 4 > n_bytes), 8192)


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """What tells one tokenizer from another, wherever it was read from."""
    return sha256_of_json(tokenizer.to_dict())


def _tokenizer_id(name: str, given: Tokenizer | None) -> str:
    """What a store's key has of its tokenizer: that of --tokenizer `name`, unless one is `given`."""
    if given:
        return tokenizer_sha256(given)
    return name if name in TOKENIZER_SETTINGS else tokenizer_file_sha256(name)


def tokenizer_file_sha256(name: str) -> str:
    """What tells one tokenizer.json from another; raises BadInputError where there is no such file."""
    path = user_path(name)
    if not path.is_file():
        raise BadInputError(
            f"--tokenizer {name}: no such file; give {', '.join(TOKENIZER_SETTINGS)} or a tokenizer.json"
        )
    try:
        return sha256_of(path)
    except OSError as error:
        raise BadInputError(f"cannot read the tokenizer {name}: {error.strerror}") from error


def read_text(
    config: DataConfig, sources: Sources, place: Path
) -> Generator[PreparationEvent, None, tuple[list[Corpus], TextSplit, TextSplit]]:
    """All text of `sources` as files in `place`: what was gathered, and its training and validation parts."""
    options = ReadOptions(config.text_field, config.encoding or None)
    corpora = [(yield from read_corpus(sources.files, place / "text", options))]
    train, val = corpora[0].text.split(config.val_fraction)
    if sources.val_files:
        corpora.append((yield from read_corpus(sources.val_files, place / "val-text", options)))
        train, val = corpora[0].text.whole(), corpora[1].text.whole()
    return corpora, train, val


def skipped_lines(corpora: list[Corpus]) -> list[str]:
    """What was left out of some texts, a line for each reason."""
    skipped = sum((corpus.skipped for corpus in corpora), Counter())
    examples = {reason: name for corpus in corpora for reason, name in corpus.examples.items()}
    return [
        f"skipped {n:,}: {reason}{f' (such as {examples[reason]})' if reason in examples else ''}"
        for reason, n in skipped.most_common()
    ]


def _build(
    config: DataConfig, sources: Sources, place: Path, folder: Path, given: Tokenizer | None
) -> Generator[PreparationEvent, None, None]:
    corpora, train, val = yield from read_text(config, sources, place)
    tokenizer = given or tokenizer_for(config, train)
    texts: list[TextFile] = [corpus.text for corpus in corpora]
    about = {
        "n_characters": sum(text.n_characters for text in texts),
        "n_documents": sum(len(text.documents) for text in texts),
        "skipped": skipped_lines(corpora),
        "val_also_in_train": share_also_in_training(train, val),
    }
    yield from build_store(place, folder, train, val, tokenizer, about)


def _notes(store: TokenStore, skipped: list[str]) -> list[str]:
    notes = [*store.about["skipped"], *skipped]
    if (overlap := store.about["val_also_in_train"]) >= TELLING_OVERLAP:
        notes.append(
            f"{overlap:.0%} of the validation text also stands in the training text: val_loss will look too good"
        )
    return notes


def _require_a_block(store: TokenStore, block_size: int, is_fixed: bool) -> None:
    """Raise BadInputError for a text that is shorter; `is_fixed` where the model is given, and with it the block."""
    shorter = min(len(store.train), len(store.val))
    if shorter <= block_size:
        part = "training" if len(store.train) < len(store.val) else "validation"
        remedy = f", or a shorter block with --block-size {shorter - 1}" if shorter > 1 and not is_fixed else ""
        whose = " of the model that is trained further" if is_fixed else ""
        raise BadInputError(
            f"the text is too short: {store.about['n_characters']:,} characters leave {shorter:,} tokens for {part}, "
            f"and a block{whose} takes {block_size + 1:,}; give more text{remedy}"
        )
