"""Data sets of the Hugging Face hub: hf:OWNER/NAME, or hf:OWNER/NAME/FOLDER for a part of one.

Needs the extra `hub`. Downloads, resumes and caches are the library's own; what is on this machine is used without a
network.
"""

from collections.abc import Generator
from pathlib import Path

from tiny_gpt.data.progress import Notice, PreparationEvent
from tiny_gpt.errors import BadInputError

# What is text in such a repository; the others are cards, scripts and pictures.
PATTERNS = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.txt", "*.txt.gz", "*.csv")


def fetch_from_hub(name: str) -> Generator[PreparationEvent, None, list[Path]]:
    """The text files of the data set `name`: of its training split where the names of files tell one.

    Raises BadInputError when it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise BadInputError(
            f"hf:{name} needs the package huggingface_hub: pip install huggingface_hub, then the same command again"
        ) from error
    owner_and_name, folder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    yield Notice(f"fetching hf:{name} with huggingface_hub")
    try:
        patterns = [f"{folder}/*"] if folder else list(PATTERNS)
        root = Path(snapshot_download(owner_and_name, repo_type="dataset", allow_patterns=patterns))
    except HFValidationError as error:
        raise BadInputError(f"hf:{name} is no name of a data set; expected hf:OWNER/NAME") from error
    except LocalEntryNotFoundError as error:
        raise BadInputError(
            f"hf:{name} is not on this machine and the hub cannot be reached; try again online"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise BadInputError(f"hf:{name} cannot be had from the hub: {str(error).splitlines()[0]}") from error
    files = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and (folder in path.relative_to(root).as_posix() if folder else True)
    )
    files = [path for path in files if any(path.match(pattern) for pattern in PATTERNS)]
    training = [path for path in files if "train" in path.relative_to(root).as_posix()]
    if not files:
        raise BadInputError(f"hf:{name} has no parquet, jsonl, csv or text files{' in that folder' if folder else ''}")
    return training or files
