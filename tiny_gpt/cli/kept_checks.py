"""The results of `tiny-gpt doctor`, kept per machine: the checks take a minute of processor time.

Only those of a device that passed all of them are kept: whoever reads of a fault repairs something and checks again.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tiny_gpt.files import cache_folder, sha256_of_json
from tiny_gpt.numerics.self_test import CHECKS, Result
from tiny_gpt.planning.autotune_cache import code_fingerprint, keep_json, machine

CHECKS_FOLDER = "checks"
# A driver or a processor may change in ways that its name does not show.
MAX_KEPT_S = 30 * 86_400.0


class KeptChecks(NamedTuple):
    """The results of one device, for each precision in the order of CHECKS."""

    results: dict[str, list[Result]]
    age_s: float


def read_checks(device: torch.device, precisions: Sequence[str]) -> KeptChecks | None:
    """The results of an earlier call on this machine; None without one, and where anything has changed since."""
    try:
        values: Any = json.loads(_file(device, precisions).read_text(encoding="utf-8"))
        results = {name: [Result(**values["results"][name][check]) for check in CHECKS] for name in precisions}
        age_s = time.time() - float(values["time"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_good = all(result.ok is True for row in results.values() for result in row)
    return KeptChecks(results, age_s) if is_good and 0 <= age_s <= MAX_KEPT_S else None


def keep_checks(device: torch.device, results: Mapping[str, Sequence[Result]]) -> None:
    """Keep the results, by precision, if all are good and the disk allows it."""
    if all(result.ok for row in results.values() for result in row):
        values = {name: {result.name: asdict(result) for result in row} for name, row in results.items()}
        keep_json(_file(device, list(results)), {"results": values, "time": time.time()})


def _file(device: torch.device, precisions: Sequence[str]) -> Path:
    key = machine(device) | {"checks": [*CHECKS], "precisions": [*precisions], "code": code_fingerprint("checks")}
    return cache_folder() / CHECKS_FOLDER / f"{sha256_of_json(key)[:32]}.json"
