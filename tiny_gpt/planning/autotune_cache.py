"""The cache of what was measured: a small JSON file for each choice of a backend, and for each measured number.

The file's name is a hash of everything that the result may depend on: machine, code version, workload, candidates. So
a stale one is never found again; the speed of steps, which other programs change, is forgotten after a day. A file
that is missing, damaged or cannot be written only means that the next start measures again.
"""

import contextlib
import functools
import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tiny_gpt.device import describe_device, processor_name
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.files import atomic_write, cache_folder, sha256_of, sha256_of_json
from tiny_gpt.planning.types import BackendChoice, Candidate

FOLDER = "backends"
NUMBERS_FOLDER = "measured"
MAX_AGE_S = 86_400.0


def cache_file(device: torch.device, candidates: list[Candidate], workload: list[Any]) -> Path:
    """The file for a choice among `candidates` for `workload`, which is plain JSON values."""
    key = machine(device) | {"candidates": [str(candidate) for candidate in candidates], "workload": workload}
    return cache_folder() / FOLDER / f"{sha256_of_json(key)[:32]}.json"


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement may depend on: processor, device, versions and code, as plain JSON values."""
    return {
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": describe_device(device),
        "versions": [torch.__version__, _package_version("numba"), code_fingerprint(device.type)],
    }


class MeasuredNumber:
    """A number that was measured on this machine, such as the seconds of a step or a pilot run's loss."""

    def __init__(self, device: torch.device, what: str, about: Any, expires: bool = False) -> None:
        """`about`: what the number depends on beside the machine and the code, as plain JSON values."""
        key = machine(device) | {"what": what, "about": about}
        self._file = cache_folder() / NUMBERS_FOLDER / f"{sha256_of_json(key)[:32]}.json"
        self._expires = expires

    def read(self) -> float | None:
        """The number; None if it has not been measured, or too long ago."""
        try:
            values: Any = json.loads(self._file.read_text(encoding="utf-8"))
            value, age_s = float(values["value"]), time.time() - float(values["time"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        is_old = self._expires and not 0 <= age_s <= MAX_AGE_S
        return value if 0 < value < float("inf") and not is_old else None

    def write(self, value: float) -> None:
        """Store it, if the disk allows it."""
        keep_json(self._file, {"value": value, "time": time.time()})


def read_choice(file: Path, candidates: list[Candidate]) -> BackendChoice | None:
    """The choice in `file`; None where there is none or it makes no sense."""
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
        chosen = next(candidate for candidate in candidates if str(candidate) == values["candidate"])
        seconds = {str(name): float(fastest) for name, fastest in values["seconds"].items()}
        failures = {str(name): str(reason) for name, reason in values["failures"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
    return BackendChoice(chosen, seconds, failures) if seconds else None


def write_choice(file: Path, choice: BackendChoice) -> None:
    """Store `choice`, if the disk allows it."""
    values = {"candidate": str(choice.candidate), "seconds": choice.seconds, "failures": choice.failures}
    keep_json(file, values)


def keep_json(file: Path, values: dict[str, Any]) -> None:
    """Write `values` as JSON, if the disk allows it."""
    with contextlib.suppress(OSError, OutOfResourcesError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            stream.write(json.dumps(values, indent=1).encode() + b"\n")


@functools.cache
def code_fingerprint(device_type: str) -> str:
    """A hash of the source files whose speed is measured on a device of this type; of those that "checks" check."""
    package = Path(__file__).parent.parent
    by_type = {"cpu": ("model", "kernels"), "checks": ("model", "kernels", "training", "numerics")}
    folders = by_type.get(device_type, ("model", "training"))
    files = sorted(path for folder in folders for path in (package / folder).rglob("*.py"))
    return sha256_of_json([sha256_of(path) for path in (package / "backends.py", *files)])


def _package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
