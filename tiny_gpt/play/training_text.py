"""The text that a run was trained on, indexed for what other texts copy from it; from the cache of tokens."""

import contextlib
from pathlib import Path

from tiny_gpt.data.copied_spans import CopyIndex, decoded_text
from tiny_gpt.data.prepare import Dataset, open_stored_dataset
from tiny_gpt.errors import BadInputError
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError
from tiny_gpt.run.description import read_description
from tiny_gpt.tokenizer.byte_char import UTF8_ERRORS, to_utf8


def copy_index(run_folder: Path) -> CopyIndex | None:
    """An index of the training text; None where it is not in the cache any more."""
    dataset = _stored_dataset(run_folder)
    return CopyIndex(decoded_text(dataset.tokenizer, dataset.train)) if dataset else None


def copied_passages(index: CopyIndex, text: str) -> list[dict[str, int]]:
    """{"start", "end", "line"} of each passage of `text` that occurs in the training text.

    Places count as JavaScript counts characters (UTF-16 units); the line is the training text's, from 1 on.
    """
    utf8 = to_utf8(text)
    return [
        {
            "start": _utf16_units(utf8[: span.start]),
            "end": _utf16_units(utf8[: span.end]),
            "line": index.line_of(span.position),
        }
        for span in index.find(utf8)
    ]


def _stored_dataset(run_folder: Path) -> Dataset | None:
    """The run's text from its token store, which the newest checkpoint that can be read names."""
    store = CheckpointStore(run_folder)
    for step in store.steps():
        with contextlib.suppress(DamagedError, BadInputError):
            description = read_description(store.verified(step))
            return open_stored_dataset(description.config.data, str(description.data.get("store")))
    return None


def _utf16_units(utf8: bytes) -> int:
    return len(utf8.decode("utf-8", UTF8_ERRORS).encode("utf-16-le", "surrogatepass")) // 2
