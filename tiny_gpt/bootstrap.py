"""Runs train.py and inference.py with the Python of .venv, which `make setup` creates.

For users who type `python3 train.py`, `python3` is often the system's Python: without torch, or version 3.9 on a Mac.
If this Python is suitable, nothing happens. Otherwise the same command is run with .venv's Python; without a complete
.venv it exits with a message that says what is missing and what to do.

Standard library and Python 3.6 syntax only, as in train.py, inference.py and tiny_gpt/__init__.py: an old Python must
be able to read them.
"""

import os
import sys

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 10)
REQUIRED = (
    "charset_normalizer",
    "filelock",
    "jinja2",
    "lxml",
    "numba",
    "numpy",
    "prometheus_client",
    "psutil",
    "pyarrow",
    "requests",
    "safetensors",
    "segno",
    "starlette",
    "tokenizers",
    "torch",
    "tqdm",
    "tyro",
    "uvicorn",
    "wakepy",
    "webencodings",
)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
# Written last by scripts/setup.py, so that an interrupted setup is not mistaken for a complete one.
STAMP = os.path.join(VENV, "setup-complete")
# Set while .venv's Python starts, so that an incomplete .venv does not restart itself forever.
LAUNCHED = "TINY_GPT_LAUNCHED"


def ensure_environment() -> None:
    """Returns if this Python is suitable. Otherwise runs the command with .venv's Python, or exits with 1."""
    problem = find_problem()
    if not problem:
        os.environ.pop(LAUNCHED, None)
        return
    python = venv_python()
    if LAUNCHED not in os.environ and os.path.isfile(STAMP) and os.path.isfile(python):
        os.environ[LAUNCHED] = "1"
        # sys.orig_argv (Python 3.10 and newer) also has the options before the script: -u, -m, -X.
        arguments = getattr(sys, "orig_argv", [sys.executable, *sys.argv])[1:]
        replace_process([python, *arguments])
    sys.exit(
        "tiny_gpt cannot start: {} {}.\n"
        "Run `make setup` (without make: `{} scripts{}setup.py`) in {}, then try again.".format(
            sys.executable, problem, "py" if os.name == "nt" else "python3", os.sep, ROOT
        )
    )


def find_problem() -> str:
    """Why this Python cannot run tiny_gpt; "" if it can."""
    if sys.version_info < OLDEST_PYTHON:
        return "is Python {}.{}, but {}.{} or newer is needed".format(*sys.version_info[:2] + OLDEST_PYTHON)
    from importlib.util import find_spec

    # find_spec also finds a folder that merely has the name of a package; its origin is None.
    files = {name: getattr(find_spec(name), "origin", None) for name in REQUIRED}
    missing = [name for name in REQUIRED if files[name] is None]
    if missing:
        return "lacks " + ", ".join(missing)
    if torch_version(str(files["torch"])) < OLDEST_TORCH:
        return "has a version of torch older than {}.{}".format(*OLDEST_TORCH)
    return ""


def torch_version(torch_file: str) -> "tuple[int, ...]":
    """ ".../torch/__init__.py" -> (2, 13). Does not import torch, which takes seconds."""
    try:
        with open(os.path.join(os.path.dirname(torch_file), "version.py"), encoding="utf-8") as file:
            version = file.read().split("__version__ = '")[1]
        return tuple(int(number) for number in version.split(".")[:2])
    except (OSError, IndexError, ValueError):
        return OLDEST_TORCH  # unknown: the import will show


def venv_python() -> str:
    """The path of .venv's Python, which may not exist."""
    return os.path.join(VENV, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))


def replace_process(command: "list[str]") -> None:
    """Runs another program in place of this one, in the same terminal and with its exit code. Never returns."""
    # macOS framework builds of Python before 3.8 set it. A venv's Python would then look for its packages in the Python
    # that started it. https://github.com/python/cpython/pull/9516
    os.environ.pop("__PYVENV_LAUNCHER__", None)
    if os.name != "nt":
        os.execv(command[0], command)
    # Windows has no exec. There, os.execv returns to the shell while the program is still running.
    import subprocess

    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            continue  # Ctrl+C has reached the program too; it saves its work and exits
    sys.exit(process.returncode)
