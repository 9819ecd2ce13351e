"""Runs train.py and inference.py with the Python that `make setup` prepared.

A reader types `python3 train.py`, and `python3` is often the system's own: without torch, or a Mac's 3.9.
Where this Python will do, nothing happens. Else the same command starts again with .venv's, and without a
finished .venv it ends with what is missing and what to do.

Standard library and Python 3.6 syntax only; so are train.py, inference.py and tiny_gpt/__init__.py, which
such a Python reads first.
"""

import os
import sys

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 10)
NEEDED = (
    "filelock",
    "numba",
    "numpy",
    "psutil",
    "pyarrow",
    "requests",
    "safetensors",
    "tokenizers",
    "torch",
    "tqdm",
    "tyro",
    "wakepy",
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
# Written last by scripts/setup.py, so that an interrupted set-up is never taken for a finished one.
STAMP = os.path.join(VENV, "setup-complete")
# Set while .venv's Python starts, so that one in which something is missing does not start itself for ever.
LAUNCHED = "TINY_GPT_LAUNCHED"


def ensure_environment() -> None:
    """Returns if this Python will do; else starts the command again with .venv's, or exits with 1."""
    fault = what_is_wrong()
    if not fault:
        os.environ.pop(LAUNCHED, None)
        return
    python = venv_python()
    if LAUNCHED not in os.environ and os.path.isfile(STAMP) and os.path.isfile(python):
        os.environ[LAUNCHED] = "1"
        # sys.orig_argv, from Python 3.10 on, also holds what stands before the script: -u, -m, -X.
        arguments = getattr(sys, "orig_argv", [sys.executable, *sys.argv])[1:]
        become([python, *arguments])
    sys.exit(
        "tiny_gpt cannot start: {} {}.\n"
        "Run `make setup` (without make: `{} scripts{}setup.py`) in {}, then the same command again.".format(
            sys.executable, fault, "py" if os.name == "nt" else "python3", os.sep, ROOT
        )
    )


def what_is_wrong() -> str:
    """What keeps this Python from running tiny_gpt; "" if nothing does."""
    if sys.version_info < OLDEST_PYTHON:
        return "is Python {}.{}, and {}.{} or newer is needed".format(*sys.version_info[:2] + OLDEST_PYTHON)
    from importlib.util import find_spec

    # A folder that only bears a package's name is found too, as a package without a file.
    files = {name: getattr(find_spec(name), "origin", None) for name in NEEDED}
    absent = [name for name in NEEDED if files[name] is None]
    if absent:
        return "lacks " + ", ".join(absent)
    if torch_version(str(files["torch"])) < OLDEST_TORCH:
        return "has a torch older than {}.{}".format(*OLDEST_TORCH)
    return ""


def torch_version(torch_file: str) -> "tuple[int, ...]":
    """`.../torch/__init__.py` → (2, 13), without the seconds that importing torch takes."""
    try:
        with open(os.path.join(os.path.dirname(torch_file), "version.py"), encoding="utf-8") as file:
            version = file.read().split("__version__ = '")[1]
        return tuple(int(number) for number in version.split(".")[:2])
    except (OSError, IndexError, ValueError):
        return OLDEST_TORCH  # Unreadable is no reason to refuse: importing it will tell.


def venv_python() -> str:
    """The path where .venv's Python is, or would be."""
    return os.path.join(VENV, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))


def become(command: "list[str]") -> None:
    """Goes on as another program, in the same terminal and with its exit code. Never returns."""
    # Framework Pythons of macOS before 3.8 leave it behind; a venv's Python then looks for its packages in
    # the one that started it. https://github.com/python/cpython/pull/9516
    os.environ.pop("__PYVENV_LAUNCHER__", None)
    if os.name != "nt":
        os.execv(command[0], command)
    # Windows has no exec: the call would return to the shell while the program still runs.
    import subprocess

    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            continue  # Ctrl+C reached the program too, which saves its work and ends by itself.
    sys.exit(process.returncode)
