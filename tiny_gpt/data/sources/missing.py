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
        return f"; did you mean {quoted(str(path.parent / near[0]))}?" if near else ""
    return ""
