"""The error for a source that is not there, with what the user may have meant."""

import contextlib
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import quoted, user_path


def source_not_found(source: str, others: Sequence[str] = ()) -> BadInputError:
    """`others` follow it in the command: the words of one path, if a shell took it apart at its blanks."""
    if re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        return BadInputError(
            f"{source}: only addresses that begin with https:// or http:// are read; download it yourself and name the "
            "file",
            code="address-unsupported",
        )
    for end in range(1, len(others) + 1):
        whole = " ".join([source, *others[:end]])
        if user_path(whole).exists():
            return BadInputError(
                f"no such file or folder: {source}. If you mean the one called {whole!r}, write {quoted(whole)}: a "
                "shell takes a name apart at its blanks",
                code="path-not-quoted",
            )
    return BadInputError(
        f"no such file or folder: {source} (looked in {Path.cwd()}){_similar(source)}; built-in datasets are "
        f"{', '.join(DATASETS)} (tiny-gpt data list); other sources are paths, patterns, - for standard input, "
        "https:// URLs and hf:OWNER/NAME",
        code="source-not-found",
    )


def _similar(source: str) -> str:
    path = user_path(source)
    with contextlib.suppress(OSError, ValueError):
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), 1, 0.7)
        return f"; did you mean {path.parent / near[0]}?" if near else ""
    return ""
