"""Which tokenizer a text gets, and the hashes that tell tokenizers apart."""

from itertools import chain

from tiny_gpt.config import TOKENIZER_SETTINGS, DataConfig
from tiny_gpt.data.text_file import TextSplit
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import sha256_of, sha256_of_json, user_path
from tiny_gpt.tokenizer.base import TOKENIZERS, Tokenizer
from tiny_gpt.tokenizer.bpe import BpeTokenizer

# A tokenizer is trained on a sample of this size; more text changes little and takes longer.
TRAINING_SAMPLE_BYTES = 32_000_000
# From this size of the training text on, bpe gives a lower loss than char (docs/log/recipe.md, "the recipe auto").
MIN_BPE_BYTES = 100_000
# The vocabulary for a text of any size where other text is read first: that has megabytes to learn the tokens from.
MIN_SHARED_VOCAB_SIZE = 2048


def build_tokenizer(config: DataConfig, train: TextSplit) -> Tokenizer:
    """The tokenizer that `config` names, trained on a sample of `train` if it is to be trained.

    Raises BadInputError for a tokenizer.json that cannot be used.
    """
    if config.tokenizer not in TOKENIZER_SETTINGS:
        return BpeTokenizer.from_file(user_path(config.tokenizer))
    name = auto_tokenizer(train.n_bytes) if config.tokenizer == "auto" else config.tokenizer
    vocab_size = config.vocab_size or default_vocab_size(train.n_bytes)
    return TOKENIZERS[name].train(train.sample(TRAINING_SAMPLE_BYTES), vocab_size)


def train_shared_tokenizer(config: DataConfig, own: TextSplit, other: TextSplit) -> Tokenizer:
    """The tokenizer of a run that learns from `other` text first: bpe, trained on as much of it as of the run's own."""
    n_bytes = min(own.n_bytes, TRAINING_SAMPLE_BYTES // 2)
    vocab_size = config.vocab_size or max(MIN_SHARED_VOCAB_SIZE, default_vocab_size(own.n_bytes))
    return BpeTokenizer.train(chain(own.sample(n_bytes), other.sample(n_bytes)), vocab_size)


def auto_tokenizer(n_bytes: int) -> str:
    """What `auto` means for a training text of `n_bytes`: a token must be seen often to be learned."""
    return "bpe" if n_bytes >= MIN_BPE_BYTES else "char"


def default_vocab_size(n_bytes: int) -> int:
    """512 for a training text of 1 MB, and doubled when the text is four times as large."""
    return next((size for size in (512, 1024, 2048, 4096) if size * size * 4 > n_bytes), 8192)


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Equal for equal tokenizers, whatever file each was read from."""
    return sha256_of_json(tokenizer.to_dict())


def tokenizer_file_sha256(name: str) -> str:
    """The hash of a tokenizer.json. Raises BadInputError if there is no such file."""
    path = user_path(name)
    if not path.is_file():
        raise BadInputError(
            f"--tokenizer {name}: no such file; give {', '.join(TOKENIZER_SETTINGS)} or a tokenizer.json",
            code="tokenizer-file-missing",
        )
    try:
        return sha256_of(path)
    except OSError as error:
        raise BadInputError(
            f"cannot read the tokenizer {name}: {error.strerror}", code="tokenizer-file-unreadable"
        ) from error
