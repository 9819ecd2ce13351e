"""Datasets on the Hugging Face hub: hf:OWNER/NAME, or hf:OWNER/NAME/FOLDER for a part of one."""

from pathlib import Path

from tiny_gpt.data.progress import Notice, Preparation
from tiny_gpt.errors import BadInputError
from tiny_gpt.hub import fetch_repository, require_valid_name

# Files that contain text; the others in such a repository are cards, scripts and images.
TEXT_PATTERNS = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.txt", "*.txt.gz", "*.csv")


def fetch_from_hub(name: str) -> Preparation[list[Path]]:
    """The text files of the dataset `name`; only those of its training split if file names say which they are.

    Raises BadInputError if the dataset is unavailable or has no text files.
    """
    repo_id, folder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    require_valid_name(name, repo_id, "dataset")
    yield Notice(f"fetching hf:{name} with huggingface_hub")
    root = fetch_repository(name, repo_id, "dataset", [f"{folder}/*"] if folder else TEXT_PATTERNS)
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
