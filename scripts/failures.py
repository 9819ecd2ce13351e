"""Explains a failed setup from what pip printed.

pip prints "No matching distribution" both for a package that does not exist for this computer and for one whose
versions it could not look up. In the second case it lists no versions, and warns about the connection.
"""

import platform
import re
import sys
from pathlib import Path

FULL_EXIT_CODE = 5
# With less free space than this, the full disk is the cause, even if the log had no room for the message.
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
    """A failure, explained in a line or two."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def explain(output: str, version: str, free_gb: float, log: Path | None = None) -> SetupError:
    """The error for `output`, which venv, pip or `import torch` printed.

    `version` is that of .venv's Python; `log`, if given, has the whole output.
    """
    missing = re.search(r"No matching distribution found for ([\w.-]+)", output)
    versions_listed = re.search(r"from versions: \d", output)
    if re.search(FULL_SIGNS, output) or free_gb < FULL_GB:
        return SetupError(full_disk(free_gb), FULL_EXIT_CODE)
    if re.search(CERTIFICATE_SIGNS, output) and not versions_listed:
        return SetupError(
            "The package server's certificate was rejected. Check this computer's clock. Behind a proxy that inspects\n"
            "HTTPS, set PIP_CERT to the proxy's certificate. Then try again."
        )
    if re.search(NETWORK_SIGNS, output) and not versions_listed:
        return SetupError("The package server does not answer. Check the network and proxy, then try again.")
    if missing:
        return SetupError(no_build(missing.group(1), version, log))
    if re.search(LIBRARY_SIGNS, output):
        return SetupError("PyTorch needs Microsoft's Visual C++ Redistributable (x64). Install it, then try again.")
    end = "\n  ".join(output.strip().splitlines()[-8:])
    where = f" (full log: {log})" if log else ""
    return SetupError(
        f"The setup failed. Its last lines{where}:\n  {end}\nIf it fails again, delete .venv and try again."
    )


def full_disk(free_gb: float) -> str:
    return f"The disk is full ({free_gb:.1f} GB free). Free some space, then try again."


def no_build(package: str, version: str, log: Path | None) -> str:
    """The message for a package that pip cannot find for this Python and computer."""
    fact = f"pip finds no {package} for Python {version} on {platform.platform()}"
    if package != "torch":
        return f"{fact} (full log: {log})\nTo use another Python: delete .venv, then `make setup PYTHON=python3.12`."
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return f"{fact}.\nPyTorch no longer supports Intel Macs. A Mac with Apple silicon needs a Python built for it."
    return (
        f"{fact}.\nPyTorch supports Python 3.11 to 3.14 on 64-bit Linux, Windows (x64), and macOS 14 or newer."
        "\nTo use another Python: delete .venv, then `make setup PYTHON=python3.12`."
    )
