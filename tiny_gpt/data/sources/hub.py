"""Datasets on the Hugging Face hub: hf:OWNER/NAME, or hf:OWNER/NAME/FOLDER for a part of one.

Needs the extra `hub`. huggingface_hub downloads, resumes and caches; files already on this machine need no network.
"""

from pathlib import Path

from tiny_gpt.data.progress import Notice, Preparation
from tiny_gpt.errors import BadInputError, first_line
from tiny_gpt.files import quoted_python

# Files that contain text; the others in such a repository are cards, scripts and images.
TEXT_PATTERNS = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.txt", "*.txt.gz", "*.csv")


def fetch_from_hub(name: str) -> Preparation[list[Path]]:
    """The text files of the dataset `name`; only those of its training split if file names say which they are.

    Raises BadInputError if the dataset is unavailable or has no text files.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise BadInputError(
            f"hf:{name} needs the package huggingface_hub: {quoted_python()} -m pip install huggingface_hub, "
            "then the same command again",
            code="hub-package-missing",
        ) from error
    repo_id, folder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    yield Notice(f"fetching hf:{name} with huggingface_hub")
    try:
        patterns = [f"{folder}/*"] if folder else list(TEXT_PATTERNS)
        root = Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=patterns))
    except HFValidationError as error:
        raise BadInputError(
            f"hf:{name} is not a valid dataset name; expected hf:OWNER/NAME", code="hub-name-invalid"
        ) from error
    except LocalEntryNotFoundError as error:
        raise BadInputError(
            f"hf:{name} is not on this machine and the hub cannot be reached; try again online", code="hub-unreachable"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise BadInputError(
            f"hf:{name} cannot be downloaded: {first_line(error)}", code="hub-download-failed"
        ) from error
    return _text_files(name, root, folder)


def _text_files(name: str, root: Path, folder: str) -> list[Path]:
    relative_paths = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    text_files = [
        path
        for path in relative_paths
        if folder in path.as_posix() and any(path.match(pattern) for pattern in TEXT_PATTERNS)
    ]
    if not text_files:
        where = " in that folder" if folder else ""
        raise BadInputError(f"hf:{name} has no parquet, jsonl, csv or text files{where}", code="hub-has-no-text-files")
    training_files = [path for path in text_files if "train" in path.as_posix()]
    return [root / path for path in training_files or text_files]
