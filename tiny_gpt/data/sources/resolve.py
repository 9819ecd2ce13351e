"""Source specs to files on this disk: paths, folders, patterns, `-`, dataset names, URLs, `hf:OWNER/NAME`.

Files are not opened here except to hash them; corpus.py reads them. The spec `A|B` means B if A is unavailable.
"""

import glob
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiny_gpt.data.progress import Notice, Preparation, StageProgress
from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.data.sources.fetch import downloads_folder, fetch_dataset, fetch_url
from tiny_gpt.data.sources.files import SourceFile, files_in_folder
from tiny_gpt.data.sources.hub import fetch_from_hub
from tiny_gpt.data.sources.missing import source_not_found
from tiny_gpt.data.token_shards.index import refuse_corpus
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import atomic_write, sha256_of, user_path, write_error
from tiny_gpt.hub import HUB_PREFIX

STDIN = "-"
URL_PREFIXES = ("https://", "http://")


@dataclass
class Sources:
    """The files of some source specs."""

    specs: list[str] = field(default_factory=list)
    """The specs as used: of alternatives the available one, and for standard input the file it was saved to."""
    files: list[SourceFile] = field(default_factory=list)
    val_files: list[SourceFile] = field(default_factory=list)
    """The validation text, for a dataset that has its own."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of files that were found in folders and left out."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the first of them."""


def resolve(specs: Sequence[str]) -> Preparation[Sources]:
    """The files of all `specs`, downloaded if necessary. Raises BadInputError naming a spec that is unavailable."""
    sources = Sources()
    for spec in specs:
        if not spec.strip():  # of a variable that is not set; it would mean the folder that one is in
            raise BadInputError("a source is empty; name a file, or . for this folder", code="source-empty")
        # A file may have a | in its name.
        alternatives = [spec] if os.path.exists(user_path(spec)) else spec.split("|")
        for i, alternative in enumerate(alternatives):
            try:
                sources.specs.append((yield from _resolve_one(alternative, sources)))
                break
            except BadInputError as error:
                if i == len(alternatives) - 1:
                    raise
                reason, others = str(error).split(";")[0], "|".join(alternatives[i + 1 :])
                yield Notice(f"{alternative} is unavailable ({reason}); using {others}")
    return sources


def _resolve_one(spec: str, sources: Sources) -> Preparation[str]:
    """Add the files of one spec to `sources`. Returns a spec that gives the same files again."""
    refuse_corpus(spec)
    path = user_path(spec)
    if spec == STDIN:
        path = yield from _save_stdin()
        sources.files.append(SourceFile(path))
        return str(path)
    # A file or folder wins over a dataset of the same name.
    if os.path.isdir(path):
        found = list(files_in_folder(path, sources.skipped, sources.examples))
        if not found:
            counts = ", ".join(f"{n:,} {reason}" for reason, n in sources.skipped.items())
            detail = f"; skipped: {counts}" if counts else ""
            raise BadInputError(
                f"{spec}: no text found in this folder{detail}; name the files themselves", code="folder-has-no-files"
            )
        sources.files += found
    elif os.path.exists(path):
        sources.files.append(SourceFile(path))
    elif spec in DATASETS:
        dataset = yield from fetch_dataset(spec)
        sources.files += dataset.train
        sources.val_files += dataset.val
    elif spec.startswith(URL_PREFIXES):
        sources.files.append((yield from fetch_url(spec)))
    elif spec.startswith(HUB_PREFIX):
        hub_paths = yield from fetch_from_hub(spec.removeprefix(HUB_PREFIX))
        sources.files += map(SourceFile, hub_paths)
    elif glob.has_magic(spec):
        sources.files += _matching_files(spec, sources)
    else:
        raise source_not_found(spec)
    return spec


def _matching_files(pattern: str, sources: Sources) -> list[SourceFile]:
    """The files that match, and the files in folders that match, in the order of their names."""
    matches = sorted(glob.glob(str(user_path(pattern)), recursive=True))
    if not matches:
        raise BadInputError(f"{pattern}: no file matches (looked in {Path.cwd()})", code="pattern-has-no-match")
    files: list[SourceFile] = []
    for match in map(Path, matches):
        if match.is_dir():
            files += files_in_folder(match, sources.skipped, sources.examples)
        else:
            files.append(SourceFile(match, is_named=False))
    return files


def _save_stdin() -> Preparation[Path]:
    """Save standard input to the cache, under a name made from its content so that a later run finds it again."""
    if sys.stdin is None or sys.stdin.closed:
        raise BadInputError("-: there is no standard input to read", code="stdin-closed")
    if sys.stdin.isatty():
        yield Notice("reading the text that you type; Ctrl+D on a line of its own ends it (Windows: Ctrl+Z, Enter)")
    folder = downloads_folder()
    path = folder / f"stdin-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            n_read = 0
            while piece := sys.stdin.buffer.read(1 << 20):
                file.write(piece)
                n_read += len(piece)
                yield StageProgress("reading standard input", n_read, None)
        if path.stat().st_size == 0:
            path.unlink()
            raise BadInputError(
                "-: standard input is empty; pipe some text in, such as: cat *.txt | ...", code="stdin-empty"
            )
        saved = path.with_name(f"stdin-{sha256_of(path)[:16]}.txt")
        shutil.move(path, saved)
    except OSError as error:
        raise write_error(path, error) from error
    return saved
