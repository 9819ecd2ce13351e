"""What a corpus in shards is like, from its index alone."""

from dataclasses import dataclass

from tiny_gpt.data.progress import Preparation
from tiny_gpt.data.token_shards.index import corpus_location, is_address
from tiny_gpt.data.token_shards.places import incomplete_shards, read_index, shown_location


@dataclass(frozen=True)
class ShardsSummary:
    """The figures of a corpus."""

    location: str
    n_shards: int
    n_val_shards: int
    n_shard_bytes: int
    n_bytes: int
    """UTF-8 bytes of the text."""
    train_tokens: int
    val_tokens: int
    tokenizer: str
    vocab_size: int
    n_documents: int
    n_texts: int
    """Texts that were added one after the other."""
    notes: list[str]
    sha256: str
    missing: list[str]
    """Names of shards that are not in the folder, or not complete; those of a server are not asked for."""


def describe_corpus(source: str) -> Preparation[ShardsSummary]:
    """The corpus that `source` names. Raises BadInputError and OutOfResourcesError."""
    location = corpus_location(source)
    assert location, "the caller knows that it is one"
    index = yield from read_index(location)
    n_tokens = index.train.n_tokens + index.val.n_tokens
    return ShardsSummary(
        location=shown_location(location),
        n_shards=len(index.train.shards),
        n_val_shards=len(index.val.shards),
        n_shard_bytes=n_tokens * index.dtype.itemsize,
        n_bytes=index.train.n_bytes + index.val.n_bytes,
        train_tokens=index.train.n_tokens,
        val_tokens=index.val.n_tokens,
        tokenizer=str(index.tokenizer.to_dict()["type"]),
        vocab_size=index.tokenizer.vocab_size,
        n_documents=index.about["n_documents"],
        n_texts=len(index.texts),
        notes=index.about["notes"],
        sha256=index.sha256,
        missing=[] if is_address(location) else incomplete_shards(index, location),
    )
