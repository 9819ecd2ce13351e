"""Sources to documents, and documents to training and validation text.

A source is a text file, a folder of them, or the name of a known corpus. Text is UTF-8 with LF line ends when it
leaves here. Knows nothing of tokens.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.data import python_docs
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import user_path

# One part in this many is kept for validation.
VALIDATION_PART = 10
# From this many documents on, whole documents are held out instead of the end of each.
MANY_DOCUMENTS = 100

CORPORA: dict[str, Callable[[], list[str]]] = {python_docs.NAME: python_docs.read_python_docs}


@dataclass(frozen=True)
class Corpus:
    """Training and validation text of a run, and what was left out on the way."""

    train: list[str]
    val: list[str]
    n_documents: int
    skipped: list[str]
    """One line for each file of a folder that is no text."""

    @property
    def n_characters(self) -> int:
        return sum(map(len, self.train)) + sum(map(len, self.val))


def read_corpus(sources: Sequence[str]) -> Corpus:
    """Read and split all `sources`. Raises BadInputError, naming the source, when one gives no text."""
    documents: list[str] = []
    skipped: list[str] = []
    for source in sources:
        documents += _read_source(source, skipped)
    train, val = split(documents)
    return Corpus(train, val, len(documents), skipped)


def split(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hold out every tenth of many documents, or the last tenth of each of few.

    ["abcdefghij"] -> (["abcdefghi"], ["j"])
    """
    if len(documents) >= MANY_DOCUMENTS:
        val = list(documents[VALIDATION_PART - 1 :: VALIDATION_PART])
        return [text for i, text in enumerate(documents) if i % VALIDATION_PART != VALIDATION_PART - 1], val
    cuts = [len(text) - len(text) // VALIDATION_PART for text in documents]
    pairs = list(zip(documents, cuts, strict=True))
    return [text[:cut] for text, cut in pairs], [text[cut:] for text, cut in pairs if text[cut:]]


def _read_source(source: str, skipped: list[str]) -> list[str]:
    if source in CORPORA and not os.path.exists(source):
        return CORPORA[source]()
    path = user_path(source)
    if os.path.isdir(path):
        return _read_folder(path, skipped)
    if not os.path.exists(path):
        raise BadInputError(
            f"no such file or folder: {source} (looked in {Path.cwd()}); known corpora are {', '.join(CORPORA)}"
        )
    text = _read_text(path)
    if not text.strip():
        raise BadInputError(f"{source} is empty: give a file with some text in it")
    return [text]


def _read_folder(folder: Path, skipped: list[str]) -> list[str]:
    """The text files below `folder` in the order of their names; the others go to `skipped` with their reason."""
    documents = []
    for path in sorted(path for path in folder.rglob("*") if os.path.isfile(path)):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            text = _read_text(path)
        except BadInputError as error:
            skipped.append(str(error))
            continue
        if text.strip():
            documents.append(text)
        else:
            skipped.append(f"{path} is empty")
    if not documents:
        reason = f"; {skipped[-1]}" if skipped else ""
        raise BadInputError(f"{folder}: no text found in this folder{reason}")
    return documents


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file, without byte order mark and with LF line ends. Raises BadInputError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from error
    if b"\0" in raw[:65536]:
        raise BadInputError(f"{path} is not a text file (it holds zero bytes); give plain text in UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path} is not UTF-8 text (byte {error.start:,} is 0x{raw[error.start]:02x}); "
            "save it as UTF-8, for instance in a text editor"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
