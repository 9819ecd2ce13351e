"""Creates .venv from pyproject.toml and constraints.txt and shows the progress.

The output of uv and pip goes to .venv/setup.log; failures.py turns their failures into a line or two. A torch in .venv
that satisfies constraints.txt is kept. So without an NVIDIA GPU, installing PyTorch's CPU build there first saves
gigabytes on Linux.

Uses only the standard library, because nothing else is installed yet.
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

# Fails now rather than at the first training if this system lacks a library that torch needs.
TORCH_CHECK = "import torch"
# Compiles the kernels now rather than at their first use. Without them, generating text is slower but works.
COMPILE_KERNELS = (
    "try:\n"
    "    from tiny_gpt.kernels.precompile import compile_all\n"
    "    compile_all()\n"
    "except Exception as failure: print(failure)"
)

# Disk space needed, in gigabytes. On Linux, PyTorch includes NVIDIA's libraries; their archives, pip's cache and the
# unpacked files exist at the same time.
SPACE_LINUX, SPACE_ELSEWHERE, SPACE_WITHOUT_TORCH = 10, 1.5, 0.5
NO_SPACE_CHECK = "TINY_GPT_NO_SPACE_CHECK"


def main(arguments: list[str]) -> int:
    """`arguments` is ["test"] or []. Returns the exit code."""
    if arguments not in ([], ["test"]):
        return fail("usage: python3 scripts/setup.py [test]", 2)
    try:
        set_up(arguments)
    except SetupError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("\nInterrupted. Run the same command to continue the setup.", 130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return fail(full_disk(free_space()), FULL_EXIT_CODE)
        return fail(f"cannot set up .venv: {error}", 1)
    return 0


def fail(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr)
    return exit_code


def set_up(extras: list[str]) -> None:
    version, torch = inspect_venv()
    stamped, *installed_extras = read_stamp() or [""]
    if version and stamped == fingerprint(version) and set(extras) <= set(installed_extras):
        return
    if not version:
        check_venv_module()
    check_space(torch)
    if version:
        STAMP.unlink(missing_ok=True)
    else:
        version = create_venv()
    # Extras that were installed before are kept.
    extras = sorted({*extras, *installed_extras})
    install(extras, version)
    write_stamp([fingerprint(version), *extras])


# The stamp: what .venv was created from, and which extras it has.


def fingerprint(version: str) -> str:
    """A hash of everything that requires a new installation if it changes. .venv contains the path of its folder."""
    digest = hashlib.sha256(f"{version}\n{ROOT}\n".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def read_stamp() -> list[str]:
    """[fingerprint, extra, ...] of the last complete setup; [] without one."""
    return STAMP.read_text().split() if STAMP.is_file() else []


def write_stamp(lines: list[str]) -> None:
    temporary = STAMP.with_suffix(".new")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(STAMP)


# .venv


def ask_python(python: str, code: str) -> list[str] | None:
    """The lines that `python` prints when it runs `code`; None if it is missing or broken."""
    command = [python, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment())
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.splitlines()


def clean_environment() -> dict[str, str]:
    """The environment without variables that make .venv's Python, or pip, use packages elsewhere."""
    misleading = ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__")
    kept = {name: value for name, value in os.environ.items() if name not in misleading}
    return kept | {"PIP_USER": "0", "PYTHONIOENCODING": "utf-8"}


def inspect_venv() -> tuple[str, str]:
    """(version of its Python, version of its torch), with "" for what is missing, broken or too old."""
    # pip's metadata is written after its files. Without it, creating .venv was interrupted.
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
    """Raises SetupError if Python lacks venv or ensurepip, as on Debian and Ubuntu without an extra package."""
    if ask_python(sys.executable, "import venv; from ensurepip import version") is not None:
        return
    package = "python{}.{}-venv".format(*sys.version_info)
    remedy = f"Run `sudo apt install {package}`" if shutil.which("apt-get") else "Install the package that has them"
    raise SetupError(f"{sys.executable} lacks the modules venv and ensurepip.\n{remedy}, then try again.")


def create_venv() -> str:
    """Creates .venv, deleting an old one. Returns the version of its Python."""
    print(f"Creating .venv with Python {platform.python_version()}.", flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(VENV.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    if done.returncode:
        raise explain(done.stdout + done.stderr, platform.python_version(), free_space())
    return platform.python_version()


# Disk space.


def check_space(torch: str) -> None:
    """Raises SetupError if the disk is too full to install. `torch` is the version in .venv, or ""."""
    needed = SPACE_LINUX if sys.platform == "linux" else SPACE_ELSEWHERE
    if torch.split("+")[0] == pinned_torch():
        needed = SPACE_WITHOUT_TORCH
    free = free_space()
    if free >= needed or os.environ.get(NO_SPACE_CHECK):
        return
    why = ", because PyTorch includes NVIDIA's libraries" if needed == SPACE_LINUX else ""
    raise SetupError(
        f"Not enough disk space: .venv needs {needed:g} GB{why}; {free:.1f} GB are free for {VENV}.\n"
        f"Free some space and try again, or set {NO_SPACE_CHECK}=1 to skip this check.",
        FULL_EXIT_CODE,
    )


def free_space() -> float:
    """In gigabytes. .venv may be a link to another disk."""
    return shutil.disk_usage(VENV if VENV.is_dir() else ROOT).free / 1e9


def pinned_torch() -> str:
    """The version of torch in constraints.txt, such as "2.13.0"."""
    match = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return match.group(1) if match else ""


# Installation.


def install(extras: list[str], version: str) -> None:
    print(
        "Setting up .venv, once: installing packages (PyTorch is large), checking them, and compiling for this\n"
        "processor. That takes a few minutes.",
        flush=True,
    )
    started = time.monotonic()
    LOG.unlink(missing_ok=True)
    if not install_with_uv(extras, version, started):
        LOG.unlink(missing_ok=True)
        run_logged(pip_install(extras), version, started)
    run_logged([bootstrap.venv_python(), "-c", TORCH_CHECK], version, started, "checking PyTorch")
    compiling = "compiling for this processor (once, a minute or two)"
    run_logged([bootstrap.venv_python(), "-c", COMPILE_KERNELS], version, started, compiling)
    print(f"Done in {clock(time.monotonic() - started)}.", flush=True)


def install_with_uv(extras: list[str], version: str, started: float) -> bool:
    """Whether uv is there and could install the packages; if not, pip is to do it.

    For everything but torch, uv took 14 s where pip took 122 s (2 cores, empty caches). But pip may be configured for a
    package server or a proxy that uv does not know, and failures.py explains only pip's messages.
    """
    uv = shutil.which("uv")
    if uv is None:
        return False
    try:
        command = [uv, "pip", "install", "--python", bootstrap.venv_python(), *requirements(extras)]
        run_logged(command, version, started)
    except SetupError:
        return False
    return True


def pip_install(extras: list[str]) -> list[str]:
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    return [bootstrap.venv_python(), "-m", "pip", "install", *options, *requirements(extras)]


def requirements(extras: list[str]) -> list[str]:
    """What to install, as arguments that pip and uv share."""
    return ["-c", "constraints.txt", "-e", f".[{','.join(extras)}]" if extras else "."]


def run_logged(command: list[str], version: str, started: float, phase: str = "") -> None:
    """Runs `command` in ROOT with its output in LOG, showing the progress. Raises SetupError if it fails.

    `started`: when the set-up began, by time.monotonic(), so that all phases show one clock. `phase`: what `command`
    does; "" for an installer, whose output says it.
    """
    # pip unpacks in the temporary folder. On many Linux systems that is in memory and too small.
    shutil.rmtree(DOWNLOADS, ignore_errors=True)
    DOWNLOADS.mkdir()
    environment = clean_environment() | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(DOWNLOADS))
    with LOG.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    try:
        show_progress(process, started, phase)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        shutil.rmtree(DOWNLOADS, ignore_errors=True)
    if process.returncode:
        raise explain(read_log(), version, free_space(), LOG)


def show_progress(process: subprocess.Popen[bytes], started: float, phase: str) -> None:
    """Shows progress until `process` ends: one changing line on a terminal, otherwise a line per minute."""
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1
    while True:
        try:
            process.wait(timeout=1 if on_terminal else 60)
            break
        except subprocess.TimeoutExpired:
            doing = phase or f"installing: {activity(read_log())}"
            line = f"  {clock(time.monotonic() - started)}  {doing}"
            print(f"\r{line[:width].ljust(width)}" if on_terminal else f"{line}\n", end="", flush=True)
    if on_terminal:
        print("\r" + " " * width, end="\r", flush=True)


def clock(seconds: float) -> str:
    """83.4 -> "1:23"."""
    return "{}:{:02d}".format(*divmod(int(seconds), 60))


def read_log() -> str:
    return LOG.read_text(encoding="utf-8", errors="replace")


def activity(output: str) -> str:
    """What is being done, from the output of uv or pip.

    "Downloading torch-2.13.0-cp311.whl (83 MB)" -> "downloading torch (83 MB)".
    """
    for line in reversed(output.splitlines()):
        words = line.split()
        if words[:1] == ["Downloading"] and ".metadata" not in line:
            return f"downloading {words[1].split('/')[-1].split('-')[0]} {' '.join(words[2:])}"
        if words[:2] == ["Installing", "collected"]:
            return "unpacking"
    return "looking up packages"
