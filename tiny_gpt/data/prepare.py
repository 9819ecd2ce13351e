"""From sources to a tokenizer and memory-mapped tokens: the way through this folder in one call."""

from dataclasses import dataclass

from tiny_gpt.config import DataConfig
from tiny_gpt.data.corpus import Corpus, read_corpus
from tiny_gpt.data.token_store import Tokens, open_or_build, store_key
from tiny_gpt.data.tokenizer import TOKENIZERS, Tokenizer
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import cache_folder


@dataclass(frozen=True)
class Dataset:
    """A text ready to be learned, with the figures that a person is told about it."""

    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    n_characters: int
    n_documents: int
    skipped: list[str]


def prepare(config: DataConfig, block_size: int) -> Dataset:
    """Read, split, tokenize and store the text of `config`.

    Raises BadInputError for unusable sources and for a text shorter than a block in either split.
    """
    corpus = read_corpus(config.data)
    tokenizer = TOKENIZERS[config.tokenizer].train(corpus.train)
    folder = cache_folder() / "tokens" / store_key([corpus.train, corpus.val], tokenizer)
    train, val = open_or_build(folder, corpus.train, corpus.val, tokenizer)
    _require_a_block(corpus, train, val, block_size)
    return Dataset(tokenizer, train, val, corpus.n_characters, corpus.n_documents, corpus.skipped)


def _require_a_block(corpus: Corpus, train: Tokens, val: Tokens, block_size: int) -> None:
    shorter = min(len(train), len(val))
    if shorter <= block_size:
        part = "training" if len(train) < len(val) else "validation"
        remedy = f", or a shorter block with --block-size {shorter - 1}" if shorter > 1 else ""
        raise BadInputError(
            f"the text is too short: {corpus.n_characters:,} characters leave {shorter:,} tokens for {part}, and a "
            f"block takes {block_size + 1:,}; give more text{remedy}"
        )
