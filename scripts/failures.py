"""What a failed set-up printed → the plain words for it.

pip says the same, "No matching distribution", of a package that does not exist for this computer and of one
whose versions it could not look up. In the second case the versions that it lists are none, and its warnings
name the connection.
"""

import platform
import re
import sys
from pathlib import Path

FULL_EXIT_CODE = 5
# On a full disk not even the reason can be written to the log.
FULL_GB = 0.02

FULL_SIGNS = r"Errno 28|No space left|WinError 112|not enough space"
CERTIFICATE_SIGNS = r"CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError"
NETWORK_SIGNS = (
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|IncompleteRead"
    r"|Max retries exceeded|incomplete-download|name resolution|getaddrinfo failed|nodename nor servname"
    r"|(?i:network is unreachable|read timed out|connection (refused|reset|aborted|broken|timed out))"
)
LIBRARY_SIGNS = r"DLL load failed|WinError 126|WinError 1114"


class SetupError(Exception):
    """What is wrong and what to do, in a line or two."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def explain(output: str, version: str, free_gb: float, log: Path | None = None) -> SetupError:
    """What venv, pip or `import torch` printed, .venv's Python version, the room on its disk → the error"""
    missing = re.search(r"No matching distribution found for ([\w.-]+)", output)
    versions_listed = re.search(r"from versions: \d", output)
    if re.search(FULL_SIGNS, output) or free_gb < FULL_GB:
        return SetupError(full_disk(free_gb), FULL_EXIT_CODE)
    if re.search(CERTIFICATE_SIGNS, output) and not versions_listed:
        return SetupError(
            "The package server's certificate was not accepted. Check this computer's clock; behind a proxy\n"
            "that opens connections, name its certificate in PIP_CERT. Then repeat."
        )
    if re.search(NETWORK_SIGNS, output) and not versions_listed:
        return SetupError("The package server does not answer. Check network and proxy, then repeat.")
    if missing:
        return SetupError(no_build(missing.group(1), version, log))
    if re.search(LIBRARY_SIGNS, output):
        return SetupError("PyTorch needs Microsoft's Visual C++ Redistributable (x64): install it and repeat.")
    end = "\n  ".join(output.strip().splitlines()[-8:])
    where = f" (all of it: {log})" if log else ""
    return SetupError(
        f"The set-up failed. Its last lines{where}:\n  {end}\nShould it fail again: delete .venv and repeat."
    )


def full_disk(free_gb: float) -> str:
    return f"The disk is full ({free_gb:.1f} GB free). Make room, then repeat."


def no_build(package: str, version: str, log: Path | None) -> str:
    """Why pip has nothing to install, and what does work"""
    fact = f"pip finds no {package} for Python {version} on {platform.platform()}"
    if package != "torch":
        return f"{fact} (all of it: {log})\nFor another Python: delete .venv, then `make setup PYTHON=python3.12`."
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return f"{fact}.\nPyTorch has left Intel Macs; a Mac with Apple silicon needs a Python made for that."
    return (
        f"{fact}.\nThere is one for Python 3.11 to 3.14 on 64-bit Linux, Windows (x64), and macOS 14 or newer."
        "\nTo take another Python: delete .venv, then `make setup PYTHON=python3.12`."
    )
