"""Folders that hold no text of the user's: runs, models, environments, caches. `train .` must not learn its own logs.

A folder is recognized by what is in it, not by where it is. The folder that the user names is always read; if a run is
in it, as train.py leaves one in the folder where it starts, the run's own files are left out.
"""

import os
from collections.abc import Set
from functools import cache

from tiny_gpt.config.run import (
    BEST_FILE,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    FINAL_FILE,
    LOG_FILE,
    METRICS_FILE,
    RUN_FILES,
)
from tiny_gpt.files import cache_folder

MODEL_FILES = {BEST_FILE, FINAL_FILE}
# What a run leaves in its folder; train.py's is the current one.
NAMES_IN_RUN = set(RUN_FILES)
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx")
LIBRARY_FOLDERS = {"node_modules", "site-packages", "dist-packages", "bower_components", "__pycache__"}


def reason_to_leave_out(path: str, names: Set[str]) -> str | None:
    """Why a folder with entries of these names is left out; None for a folder to read."""
    if holds_run(names):
        return "folder of a run"
    if CONFIG_FILE in names and any(name.endswith(WEIGHT_SUFFIXES) for name in names):
        return "folder of a model"
    if os.path.basename(path) in LIBRARY_FOLDERS or "pyvenv.cfg" in names or "conda-meta" in names:
        return "folder of installed software"
    if {"HEAD", "objects", "refs"} <= names:
        return "folder of a version control system"
    if "CACHEDIR.TAG" in names or os.path.realpath(path) == _own_cache(os.environ.get("TINY_GPT_CACHE")):
        return "folder of a cache"
    return None


def holds_run(names: Set[str]) -> bool:
    """Whether a folder with entries of these names is that of a run, finished or not."""
    return bool(names & (MODEL_FILES | {CHECKPOINTS_FOLDER})) and bool(names & {LOG_FILE, METRICS_FILE, CONFIG_FILE})


@cache
def _own_cache(_setting: str | None) -> str:
    return os.path.realpath(cache_folder())
