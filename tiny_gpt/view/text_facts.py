"""What a run's text is like without a model: how well simple methods predict it, and what its parts share anyway.

These figures give a loss its meaning. They are computed once per text, in seconds, and kept in the run's folder in
text_facts.json. The text itself comes from the token store in the cache; without it, only the file is read.
"""

import contextlib
import json
import lzma
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import TEXT_FACTS_FILE, DataConfig
from tiny_gpt.data.copied_spans import CopyIndex, decoded_text
from tiny_gpt.data.prepare import Dataset, open_stored_dataset
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.files import atomic_write
from tiny_gpt.view.run_files import CheckpointNote, read_json_file

# Training text that the counts and the compressors see: the end, which is next to the validation text.
MAX_COUNTED_BYTES = 8 << 20
# xz takes a second for so much, twice.
MAX_CONTEXT_BYTES, MAX_COMPRESSED_BYTES = 1 << 19, 1 << 16
# Validation text that is scored: in the middle, where it is no one's first or last page.
MAX_SCORED_BYTES = 1 << 18


@dataclass(frozen=True)
class TextFacts:
    """Figures in bits per byte of the validation text, predicted from the training text."""

    text_sha256: str
    train_bytes: int
    val_bytes: int
    letters: float
    """By the frequencies of single characters."""
    pairs: float
    """By the frequencies of each character after the one before it."""
    gzip: float
    xz: float
    """Compressed after the training text, as compressors are used."""
    held_out_copied: float
    """The fraction of the validation text in passages that the training text has too."""
    indexed_bytes: int
    """Of the training text, in which copied passages are searched."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `asdict`. Raises ValueError or KeyError."""
        found = {field.name: values[field.name] for field in fields(cls)}
        numbers = [value for name, value in found.items() if name != "text_sha256"]
        are_numbers = all(isinstance(value, int | float) and 0 <= value < 1e18 for value in numbers)
        if not (are_numbers and isinstance(found["text_sha256"], str)):
            raise ValueError("unexpected values")
        return cls(**found)


def read_text_facts(folder: Path, checkpoint: CheckpointNote | None) -> TextFacts | None:
    """The facts in the run's folder; None if there are none, or those of another text."""
    try:
        facts = TextFacts.from_dict(read_json_file(folder / TEXT_FACTS_FILE))
    except (ValueError, KeyError, TypeError):
        return None
    if checkpoint is not None and checkpoint.data.get("text_sha256") != facts.text_sha256:
        return None
    return facts


def open_training_text(checkpoint: CheckpointNote | None) -> Dataset | None:
    """The run's text as tokens, from the cache; None if it is no longer there."""
    store = checkpoint.data.get("store") if checkpoint else None
    return open_stored_dataset(DataConfig(), store) if isinstance(store, str) else None


def compute_text_facts(dataset: Dataset, index: CopyIndex) -> TextFacts:
    """The facts of a text; `index` is over its training part. Takes 2 s for 1 MB, and little more for larger texts."""
    val = decoded_text(dataset.tokenizer, dataset.val, 4 * MAX_SCORED_BYTES)
    train_end = index.text[-MAX_COUNTED_BYTES:]
    scored = _middle(val, MAX_SCORED_BYTES)
    characters, scored_characters = _codepoints(train_end), _codepoints(scored)
    context, compressed = train_end[-MAX_CONTEXT_BYTES:], scored[:MAX_COMPRESSED_BYTES]
    return TextFacts(
        text_sha256=str(dataset.identity["text_sha256"]),
        train_bytes=dataset.train.n_bytes,
        val_bytes=dataset.val.n_bytes,
        letters=_bits(characters, scored_characters, 1) / max(1, len(scored)),
        pairs=_bits(characters, scored_characters, 2) / max(1, len(scored)),
        gzip=_compressed_bits(lambda text: zlib.compress(text, 9), context, compressed),
        xz=_compressed_bits(lambda text: lzma.compress(text, preset=6), context, compressed),
        held_out_copied=index.copied_fraction(scored),
        indexed_bytes=len(index.text),
    )


def write_text_facts(folder: Path, facts: TextFacts) -> None:
    """Keep the facts for the next time; a folder that cannot be written stays as it is."""
    with contextlib.suppress(OutOfResourcesError, OSError), atomic_write(folder / TEXT_FACTS_FILE) as file:
        file.write(json.dumps(asdict(facts), indent=2).encode() + b"\n")


def _middle(text: bytes, n_bytes: int) -> bytes:
    """`n_bytes` from the middle of `text`, in whole characters."""
    start = max(0, (len(text) - n_bytes) // 2)
    return text[start : start + n_bytes].decode("utf-8", "ignore").encode()


def _codepoints(text: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(text.decode("utf-8", "replace").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _bits(train: NDArray[np.uint32], scored: NDArray[np.uint32], order: int) -> float:
    """The bits that `scored` costs under counts of single characters (1) or pairs (2) in `train`.

    Counts are smoothed by the next lower order: (n(pair) + p(character)) / (n(first) + 1), as in Witten-Bell smoothing
    with a constant weight. A character that `train` lacks costs as much as any of Unicode's.
    """
    alphabet, ids = np.unique(train, return_inverse=True)
    counts = np.bincount(ids, minlength=len(alphabet)).astype(np.float64)
    places = np.searchsorted(alphabet, scored).clip(max=max(0, len(alphabet) - 1))
    is_known = alphabet[places] == scored if len(alphabet) else np.zeros(len(scored), dtype=bool)
    n_codepoints = 0x110000
    single = np.where(is_known, counts[places], 0.0) + 1 / n_codepoints
    probabilities = single / (counts.sum() + 1)
    if order == 2 and len(scored) > 1:
        width = np.int64(len(alphabet))
        pairs, n_pairs = np.unique(ids[:-1].astype(np.int64) * width + ids[1:], return_counts=True)
        wanted = places[:-1].astype(np.int64) * width + places[1:]
        at = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
        both_known = is_known[:-1] & is_known[1:] & (pairs[at] == wanted)
        joint = np.where(both_known, n_pairs[at], 0.0)
        firsts = np.where(is_known[:-1], counts[places[:-1]], 0.0)
        probabilities = np.append(probabilities[:1], (joint + probabilities[1:]) / (firsts + 1))
    return float(-np.log2(probabilities).sum())


def _compressed_bits(compress: Callable[[bytes], bytes], context: bytes, scored: bytes) -> float:
    """Bits per byte that `scored` adds to the compressed `context`."""
    added = len(compress(context + scored)) - len(compress(context))
    return 8 * added / max(1, len(scored))
