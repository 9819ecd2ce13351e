"""The error for a source that is not there, with what the user may have meant."""

import contextlib
import difflib
import os
import re
from pathlib import Path

from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import quoted, user_path


def source_not_found(source: str) -> BadInputError:
    """The error for `source`, which is neither a path nor another kind of source."""
    if re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
        return BadInputError(
            f"{source}: only addresses that begin with https:// or http:// are read; download it yourself and name the "
            "file",
            code="address-unsupported",
        )
    if os.path.islink(user_path(source)):
        target = os.readlink(user_path(source))
        return BadInputError(
            f"{source} is a link to {target}, which is not there or leads back to it; name the file itself",
            code="source-is-a-dead-link",
        )
    place = "" if user_path(source).is_absolute() else f" (looked in {Path.cwd()})"
    if similar := _similar(source):
        remedy = f"did you mean {quoted(similar)}?"
    else:
        remedy = (
            f"built-in datasets are {', '.join(DATASETS)} (tiny-gpt data list); other sources are paths, patterns, "
            "- for standard input, https:// URLs and hf:OWNER/NAME"
        )
    return BadInputError(f"no such file or folder: {source}{place}; {remedy}", code="source-not-found")


def _similar(source: str) -> str:
    """A file, folder or dataset with a similar name; "" if there is none."""
    path, near = user_path(source), list[str]()
    with contextlib.suppress(OSError, ValueError):
        near = [
            str(path.parent / name) for name in difflib.get_close_matches(path.name, os.listdir(path.parent), 1, 0.7)
        ]
    return next(iter(near or difflib.get_close_matches(source, DATASETS, 1, 0.7)), "")
