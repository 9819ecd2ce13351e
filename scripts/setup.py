"""Creates .venv and installs tiny_gpt in it: python3 scripts/setup.py [test]

`test` also installs what `make test` and `make lint` need. A complete setup is left as it is; an interrupted one is
continued.

Any Python can start this file. It finds one that is new enough (this one, .venv's or the newest on PATH), with which
environment.py does the work. So it uses old syntax, up to its first check even that of Python 2.
"""

import sys

if sys.version_info < (3, 6):
    sys.exit("tiny_gpt needs Python 3.11 or newer, not %d.%d: make setup PYTHON=python3" % sys.version_info[:2])

import os
import platform
import shutil
import subprocess

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tiny_gpt.bootstrap import OLDEST_PYTHON, replace_process, venv_python

# The newest Python for which PyPI has the torch of constraints.txt.
NEWEST_PYTHON = (3, 14)


def main():
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        python = find_python()
        if python:
            replace_process([python, os.path.abspath(__file__)] + sys.argv[1:])
    if sys.version_info < OLDEST_PYTHON:
        found = "{} is {}, and there is no newer one on PATH".format(sys.executable, platform.python_version())
        sys.exit("tiny_gpt needs Python 3.11 or newer: {}.\n{}, then try again.".format(found, how_to_get_python()))
    import environment

    sys.exit(environment.main(sys.argv[1:]))


def find_python():
    """The path of a suitable Python, or ""."""
    commands = [[venv_python()]]
    for minor in range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1):
        commands.append(["py", "-3.%d" % minor] if os.name == "nt" else ["python3.%d" % minor])
    # Run, not only looked up: a file of that name may be a wrapper that has no Python to start.
    code = "import sys; print(sys.version_info[0], sys.version_info[1], sys.executable)"
    for command in commands:
        try:
            answer = subprocess.check_output(command + ["-c", code], stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            continue
        major, minor, path = answer.decode("utf-8", "replace").strip().split(" ", 2)
        if OLDEST_PYTHON <= (int(major), int(minor)) <= NEWEST_PYTHON:
            return path
    return ""


def how_to_get_python():
    if sys.platform == "darwin":
        return "Run `brew install python@3.13`, or the installer from python.org"
    if os.name == "nt":
        return "Run `winget install Python.Python.3.13`, or the installer from python.org"
    if shutil.which("apt-get"):
        return "Run `sudo apt install python3.11 python3.11-venv` (or 3.12 or 3.13, whichever apt has)"
    return "Install one from your system's packages, or with pyenv or uv"


if __name__ == "__main__":
    main()
