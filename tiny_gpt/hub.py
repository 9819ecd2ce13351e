"""Repositories of the Hugging Face hub: hf:OWNER/NAME for a dataset or a model.

Needs the extra `hub`. huggingface_hub downloads, resumes and caches; files already on this machine need no network.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tiny_gpt.errors import BadInputError, first_line
from tiny_gpt.files import quoted_python

HUB_PREFIX = "hf:"
GGUF_SUFFIX = ".gguf"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What a model needs here: never pickles, code, or the same weights for other frameworks.
MODEL_PATTERNS = ("config.json", "tokenizer.json", "tokenizer_config.json", "*.safetensors", "*.safetensors.index.json")
# The folder in huggingface_hub's cache that holds a repository's versions, below one named models--OWNER--NAME.
SNAPSHOTS = "snapshots"


def fetch_model(name: str) -> Path:
    """The files of the model `name`, downloaded if necessary: a folder, or one GGUF file for OWNER/NAME/FILE.gguf.

    Raises BadInputError as `fetch_repository` does, and if the repository has no weights that can be read.
    """
    repo_id, file_name = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if file_name and not file_name.endswith(GGUF_SUFFIX):
        raise BadInputError(
            f"hf:{name} names no {GGUF_SUFFIX} file; expected hf:OWNER/NAME or hf:OWNER/NAME/FILE{GGUF_SUFFIX}",
            code="hub-file-not-gguf",
        )
    folder = fetch_repository(name, repo_id, "model", (file_name,) if file_name else MODEL_PATTERNS)
    path = folder / file_name if file_name else folder
    if not (path.is_file() if file_name else any(path.glob("*.safetensors"))):
        missing = file_name or "weights in safetensors"
        raise BadInputError(
            f"hf:{name} has no {missing}; look at the files on its page, and name a GGUF file of it by "
            f"hf:{repo_id}/FILE{GGUF_SUFFIX} if there is one",
            code="hub-has-no-model",
        )
    return path


def require_valid_name(name: str, repo_id: str, kind: Literal["dataset", "model"]) -> None:
    """Raise BadInputError, naming the source `name`, where `repo_id` cannot be a repository's: before the network and
    huggingface_hub are asked."""
    if not REPOSITORY.fullmatch(repo_id) or ".." in repo_id:
        raise _name_error(name, kind)


def _name_error(name: str, kind: str) -> BadInputError:
    return BadInputError(f"hf:{name} is not a valid {kind} name; expected hf:OWNER/NAME", code="hub-name-invalid")


def fetch_repository(name: str, repo_id: str, kind: Literal["dataset", "model"], patterns: Sequence[str]) -> Path:
    """The folder with the files of a repository that match `patterns`.

    Raises BadInputError, naming the source `name`, if huggingface_hub is missing or the repository is unavailable.
    """
    require_valid_name(name, repo_id, kind)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise BadInputError(
            f"hf:{name} needs the package huggingface_hub: {quoted_python()} -m pip install huggingface_hub, "
            "then the same command again",
            code="hub-package-missing",
        ) from error
    try:
        return Path(snapshot_download(repo_id, repo_type=kind, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise _name_error(name, kind) from error
    except LocalEntryNotFoundError as error:
        raise BadInputError(
            f"hf:{name} is not on this machine and the hub cannot be reached; try again online", code="hub-unreachable"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise BadInputError(
            f"hf:{name} cannot be downloaded: {first_line(error)}", code="hub-download-failed"
        ) from error


def repository_name(path: Path) -> str:
    """The NAME of OWNER/NAME for a folder in huggingface_hub's cache, which is itself named after a commit; else ""."""
    return path.parent.parent.name.rsplit("--", 1)[-1] if path.parent.name == SNAPSHOTS else ""
