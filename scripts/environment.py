"""Makes .venv as pyproject.toml and constraints.txt want it, and says how it goes.

pip's output goes to .venv/setup.log, its failures come out as a line or two (failures.py). A torch in .venv
that fits constraints.txt stays: without an NVIDIA GPU, gigabytes are saved on Linux by putting PyTorch's CPU
build there first.

Standard library only: nothing is installed yet.
"""

import errno
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from failures import FULL_EXIT_CODE, SetupError, explain, full_disk

from tiny_gpt import bootstrap

ROOT = Path(bootstrap.ROOT)
VENV = Path(bootstrap.VENV)
STAMP = Path(bootstrap.STAMP)
LOG = VENV / "setup.log"
DOWNLOADS = VENV / "downloads"

# Rather now than at the start of a night: torch may want a library that this system lacks.
TORCH_CHECK = "import torch"
# Rather now than when the first text is to be written; without it texts are written more slowly, but written.
COMPILING = (
    "try:\n"
    "    from tiny_gpt.kernels.precompile import compile_all\n"
    "    compile_all()\n"
    "except Exception as failure: print(failure)"
)

# Disk space in gigabytes. On Linux PyTorch brings NVIDIA's libraries: the archives, pip's cache of them and
# what they unpack to lie side by side for a while.
SPACE_LINUX, SPACE_ELSEWHERE, SPACE_WITHOUT_TORCH = 10, 1.5, 0.5
NO_SPACE_CHECK = "TINY_GPT_NO_SPACE_CHECK"


def main(arguments: list[str]) -> int:
    """["test"] or [] → exit code"""
    if arguments not in ([], ["test"]):
        return fail("usage: python3 scripts/setup.py [test]", 2)
    try:
        set_up(arguments)
    except SetupError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("\nStopped. The same command goes on with the set-up.", 130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return fail(full_disk(free_space()), FULL_EXIT_CODE)
        return fail(f"Cannot set up .venv: {error}", 1)
    return 0


def fail(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr)
    return exit_code


def set_up(extras: list[str]) -> None:
    version, torch = look_into_venv()
    stamped, *extras_there = read_stamp() or [""]
    if version and stamped == fingerprint(version) and set(extras) <= set(extras_there):
        return
    if not version:
        check_venv_module()
    check_space(torch)
    if version:
        STAMP.unlink(missing_ok=True)
    else:
        version = make_venv()
    # Who has run the tests here keeps what they need.
    extras = sorted({*extras, *extras_there})
    install(extras, version)
    write_stamp([fingerprint(version), *extras])


# The stamp says what .venv was made from, and which extras it has.


def fingerprint(version: str) -> str:
    """A hash of all that asks for a new installation; of the folder too, as its path stands in .venv."""
    digest = hashlib.sha256(f"{version}\n{ROOT}\n".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def read_stamp() -> list[str]:
    """[fingerprint, extra, ...] of the last finished set-up; [] without one"""
    return STAMP.read_text().split() if STAMP.is_file() else []


def write_stamp(words: list[str]) -> None:
    unfinished = STAMP.with_suffix(".new")
    unfinished.write_text("\n".join(words) + "\n")
    unfinished.replace(STAMP)


# .venv


def ask_python(python: str, code: str) -> list[str] | None:
    """The lines that it prints for `code`; None where it is missing or broken."""
    command = [python, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment())
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.splitlines()


def clean_environment() -> dict[str, str]:
    """The environment without what leads .venv's Python to packages elsewhere, or pip to install there."""
    leading_astray = ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")
    kept = {name: value for name, value in os.environ.items() if name not in leading_astray}
    return kept | {"PIP_USER": "0", "PYTHONIOENCODING": "utf-8"}


def look_into_venv() -> tuple[str, str]:
    """(version of its Python, version of its torch), "" for what is missing, broken or too old"""
    # pip's own entry is written after its files: without it, making .venv was interrupted.
    code = (
        "import platform\n"
        "from importlib.metadata import PackageNotFoundError, version\n"
        "version('pip')\n"
        "print(platform.python_version())\n"
        "try: print(version('torch'))\n"
        "except PackageNotFoundError: print()"
    )
    version, torch = ask_python(bootstrap.venv_python(), code) or ("", "")
    if not version or tuple(int(number) for number in version.split(".")[:2]) < bootstrap.OLDEST_PYTHON:
        return "", ""
    return version, torch


def check_venv_module() -> None:
    """Debian and Ubuntu leave ensurepip out of their Python."""
    if ask_python(sys.executable, "import venv; from ensurepip import version") is not None:
        return
    package = "python{}.{}-venv".format(*sys.version_info)
    remedy = f"Run `sudo apt install {package}`" if shutil.which("apt-get") else "Install what has them"
    raise SetupError(
        f"{sys.executable} lacks the modules venv and ensurepip, which make .venv.\n{remedy}, then repeat."
    )


def make_venv() -> str:
    """Makes .venv anew, whatever is left of an old one. Returns its Python's version."""
    print(f"Making .venv with Python {platform.python_version()}.", flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(VENV.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    if done.returncode:
        raise explain(done.stdout + done.stderr, platform.python_version(), free_space())
    return platform.python_version()


# Disk space.


def check_space(torch: str) -> None:
    """Stops before a download that could not end well. torch: the version in .venv, or "" """
    needed = SPACE_LINUX if sys.platform == "linux" else SPACE_ELSEWHERE
    if torch.split("+")[0] == pinned_torch():
        needed = SPACE_WITHOUT_TORCH
    free = free_space()
    if free >= needed or os.environ.get(NO_SPACE_CHECK):
        return
    why = ", as PyTorch brings NVIDIA's libraries" if needed == SPACE_LINUX else ""
    raise SetupError(
        f"Too little disk space: .venv needs {needed:g} GB{why}; {free:.1f} GB are free for {VENV}.\n"
        f"Make room and repeat, or set {NO_SPACE_CHECK}=1 to try all the same.",
        FULL_EXIT_CODE,
    )


def free_space() -> float:
    """Gigabytes; .venv may be a link to another disk."""
    return shutil.disk_usage(VENV if VENV.is_dir() else ROOT).free / 1e9


def pinned_torch() -> str:
    """ "2.13.0", from constraints.txt"""
    match = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return match.group(1) if match else ""


# pip.


def install(extras: list[str], version: str) -> None:
    print("Installing into .venv. The first time takes some minutes: PyTorch is large.", flush=True)
    started = time.monotonic()
    LOG.unlink(missing_ok=True)
    run_logged(pip_install(extras), version)
    run_logged([bootstrap.venv_python(), "-c", TORCH_CHECK], version)
    run_logged([bootstrap.venv_python(), "-c", COMPILING], version)
    print(f"Done in {clock(time.monotonic() - started)}.", flush=True)


def pip_install(extras: list[str]) -> list[str]:
    target = f".[{','.join(extras)}]" if extras else "."
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    return [bootstrap.venv_python(), "-m", "pip", "install", *options, "-c", "constraints.txt", "-e", target]


def run_logged(command: list[str], version: str) -> None:
    """Runs it in ROOT, its output in LOG, and shows how it goes. Raises SetupError if it fails."""
    # pip unpacks in the temporary folder, which on many Linux systems is half the memory: too small.
    shutil.rmtree(DOWNLOADS, ignore_errors=True)
    DOWNLOADS.mkdir()
    environment = clean_environment() | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(DOWNLOADS))
    with LOG.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    try:
        show_progress(process)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        shutil.rmtree(DOWNLOADS, ignore_errors=True)
    if process.returncode:
        raise explain(read_log(), version, free_space(), LOG)


def show_progress(process: subprocess.Popen[bytes]) -> None:
    """Until it ends: one line that changes; in a file or a pipe, a line a minute."""
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1
    started = time.monotonic()
    while True:
        try:
            process.wait(timeout=1 if on_terminal else 60)
            break
        except subprocess.TimeoutExpired:
            line = f"  {clock(time.monotonic() - started)}  {activity(read_log())}"
            print(f"\r{line[:width].ljust(width)}" if on_terminal else f"{line}\n", end="", flush=True)
    if on_terminal:
        print("\r" + " " * width, end="\r", flush=True)


def clock(seconds: float) -> str:
    """83.4 → "1:23" """
    return "{}:{:02d}".format(*divmod(int(seconds), 60))


def read_log() -> str:
    return LOG.read_text(encoding="utf-8", errors="replace")


def activity(output: str) -> str:
    """pip's last telling line: "Downloading torch-2.13.0-cp311.whl (83 MB)" → "downloading torch (83 MB)" """
    for line in reversed(output.splitlines()):
        words = line.split()
        if words[:1] == ["Downloading"] and ".metadata" not in line:
            return f"downloading {words[1].split('/')[-1].split('-')[0]} {' '.join(words[2:])}"
        if words[:2] == ["Installing", "collected"]:
            return "unpacking"
    return "looking up packages"
