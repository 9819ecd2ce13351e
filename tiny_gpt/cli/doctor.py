"""`tiny-gpt doctor`: test this machine's arithmetic before a night is spent on it, and say what is safe.

Also tells the few facts of the machine that decide how a night goes.
"""

import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.device import (
    PRECISIONS,
    available_devices,
    candidate_precisions,
    configure_torch,
    describe_device,
    pick_device,
)
from tiny_gpt.errors import UsageError
from tiny_gpt.host.battery import system_battery
from tiny_gpt.numerics.self_test import Result, describe, self_test
from tiny_gpt.planning.autotune import choose_backend
from tiny_gpt.planning.types import BackendChoice
from tiny_gpt.ui.terminal import check_mark, printable

EVERY_DEVICE = "all"
# An English text has so many kinds of characters, more or less.
GUIDE_VOCAB_SIZE = 256
# The guide's night needs less of either; a machine that has less will meet its limit before morning.
MIN_DISK_BYTES = MIN_MEMORY_BYTES = 2e9

Show = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One device in one precision, tested."""

    device: str
    precision: str
    is_auto: bool
    """Whether auto takes this precision on this device."""
    results: list[Result]
    choice: BackendChoice | None = None
    """What auto takes on this device for the guide's model; told by the trial of its precision."""

    @property
    def safe(self) -> bool:
        return all(result.ok for result in self.results)

    def __str__(self) -> str:
        return f"{self.device} with {self.precision}"


def examine(device_name: str = EVERY_DEVICE, as_json: bool = False) -> int:
    """Test the device called `device_name` ("auto" is the preferred one), or every one there is, and print how it did.

    Returns the exit code: 0 if what auto takes there is safe, else 1. Raises UsageError for a device that is not here.
    """
    devices = every_device() if device_name == EVERY_DEVICE else [pick_device(device_name)]
    show: Show = (lambda line: None) if as_json else (lambda line: print(printable(line), flush=True))
    start = time.perf_counter()
    facts = machine_facts()
    for line in fact_lines(facts):
        show(line)
    trials = [trial for device in devices for trial in examine_device(device, show)]
    chosen = next(trial for trial in trials if trial.is_auto)  # devices come in auto's order
    elapsed_s = time.perf_counter() - start
    for line in (f"Errors in % of what rounding explains; {elapsed_s:.0f} s.", "", *verdict(trials, chosen)):
        show(line)
    if as_json:
        print(json.dumps(as_dict(facts, trials, chosen, elapsed_s), indent=2))
    return 0 if chosen.safe else 1


def every_device() -> list[torch.device]:
    """Each device once, the preferred first; cuda is cuda:0 by another name."""
    return [torch.device(name) for name in available_devices() if name != "cuda:0"]


def examine_device(device: torch.device, show: Show) -> list[Trial]:
    """Test one device in every precision it could be told to use; the checks are shown as they are done."""
    torch.set_float32_matmul_precision("highest")  # what another device was given must not change this one
    configure_torch(device)
    # What takes a GPU's compiler a minute is left to the night itself.
    config = RunConfig() if device.type == "cpu" else RunConfig(train=TrainConfig(epochs=1))
    choice = choose_backend(config, GUIDE_VOCAB_SIZE, device)
    names = [name for name in PRECISIONS if is_possible(name, device)]
    show("")
    show(f"{describe_device(device):<28}" + "".join(f"{name:<14}" for name in names).rstrip())
    rows = []
    for row in zip(*(self_test(device, PRECISIONS[name]) for name in names), strict=True):
        show(f"{row[0].name:<28}" + "".join(f"{cell(result):<14}" for result in row).rstrip())
        rows.append(row)
    trials = [
        Trial(str(device), name, is_auto, list(results), choice if is_auto else None)
        for name, results in zip(names, zip(*rows, strict=True), strict=True)
        for is_auto in [name == choice.candidate.precision]
    ]
    for trial in trials:
        for result in trial.results:
            if result.detail:
                show(f"  {trial}: {result.detail if result.ok else describe(result)}")
    return trials


def is_possible(precision: str, device: torch.device) -> bool:
    """Whether training on `device` could be told to use it."""
    try:
        candidate_precisions(precision, device)
    except UsageError:
        return False
    return True


def cell(result: Result) -> str:
    """✓ 12%, ✓ exact, ✗ 35 times, ✗ no number, ✗ wrong."""
    good = check_mark(sys.stdout)
    bad = "✗" if good == "✓" else "x"
    if result.ok:
        return f"{good} {result.error / result.bound:.0%}" if result.bound else f"{good} exact"
    if math.isnan(result.error):
        return f"{bad} no number"
    share = result.error / result.bound if result.bound else math.inf
    return f"{bad} {share:,.1f} times" if share < 1e6 else f"{bad} wrong"


def verdict(trials: list[Trial], chosen: Trial) -> Iterator[str]:
    """What is safe, and the flags to use where auto is not."""
    safe = [trial for trial in trials if trial.safe]
    yield f"auto takes {chosen}{path_of(chosen)}: {reason(chosen)}."
    if chosen.choice:
        if was_measured(chosen):
            yield f"  A part of a step takes: {chosen.choice.figures}."
        yield from chosen.choice.notes
    for trial in trials:
        if not trial.safe:
            yield f"Not safe: {trial} ({'; '.join(result.name for result in trial.results if not result.ok)})."
    if safe:
        yield f"Safe for a night: {join([str(trial) for trial in safe])}."
    if not chosen.safe and safe:
        yield f"Train with: {' '.join(flags(safe))}"
    if not safe:
        yield "Nothing tested here is safe: a model would come out worse without a word. Update torch (make setup) and"
        yield "the system, restart the machine, and ask again; tiny-gpt doctor without --device tests every device."


def reason(chosen: Trial) -> str:
    """Why auto takes this precision, and this path, on this device."""
    if was_measured(chosen):
        return "the fastest for the guide's model"
    if chosen.device == "mps":
        return "bf16 is no faster there"
    return "it has units for bf16" if chosen.precision == "bf16" else "it has no units for bf16"


def path_of(chosen: Trial) -> str:
    """The path that auto takes, where it has found that out."""
    return f", {chosen.choice.candidate.backend}" if chosen.choice and was_measured(chosen) else ""


def was_measured(chosen: Trial) -> bool:
    """Whether auto had a choice."""
    return chosen.choice is not None and len(chosen.choice.seconds) > 1


def flags(safe: list[Trial]) -> list[str]:
    """The flags that lead to the first safe trial: of the preferred device, in auto's precision where that is safe."""
    best = next((trial for trial in safe if trial.device == safe[0].device and trial.is_auto), safe[0])
    device = [] if best.device == available_devices()[0] else ["--device", best.device]
    return device + ([] if best.is_auto else ["--precision", best.precision])


def join(words: list[str]) -> str:
    """a, b or c."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def machine_facts() -> dict[str, Any]:
    """What this machine is and has, ready for JSON."""
    memory = psutil.virtual_memory()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "free_memory_bytes": memory.available,
        "free_disk_bytes": shutil.disk_usage(".").free,
        "battery": battery(),
    }


def battery() -> dict[str, Any] | None:
    """How full it is and whether it is being charged; None without one, or where the system does not tell."""
    try:
        found = system_battery()
    except Exception:  # some systems lack the call, others the files it reads
        return None
    return found and {"percent": round(found.percent), "plugged_in": found.power_plugged}


def fact_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The same for people, with what stands against a night."""
    yield f"torch {facts['torch']}, Python {facts['python']}, {facts['system']}"
    memory, free = facts["memory_bytes"], facts["free_memory_bytes"]
    low = "" if free >= MIN_MEMORY_BYTES else "; close other programs before the night"
    yield f"memory      {free / 1e9:,.1f} of {memory / 1e9:,.1f} GB free{low}"
    disk = facts["free_disk_bytes"]
    low = "" if disk >= MIN_DISK_BYTES else "; make room before the night"
    yield f"disk        {disk / 1e9:,.1f} GB free in this folder{low}"
    if power := facts["battery"]:
        state = {True: ", plugged in", False: "; plug it in before the night", None: ""}[power["plugged_in"]]
        yield f"battery     {power['percent']}%{state}"


def as_dict(facts: dict[str, Any], trials: list[Trial], chosen: Trial, elapsed_s: float) -> dict[str, Any]:
    """All that was found out, ready for JSON: an error that is no finite number is null."""
    safe = [trial for trial in trials if trial.safe]
    return {
        **facts,
        "auto": {"device": chosen.device, "precision": chosen.precision}
        | ({"backend": chosen.choice.candidate.backend, "seconds": chosen.choice.seconds} if chosen.choice else {}),
        "safe": chosen.safe,
        "flags": flags(safe) if safe and not chosen.safe else [],
        "elapsed_s": round(elapsed_s, 2),
        "trials": [
            {
                "device": trial.device,
                "precision": trial.precision,
                "safe": trial.safe,
                "checks": [
                    asdict(result) | {"error": result.error if math.isfinite(result.error) else None}
                    for result in trial.results
                ],
            }
            for trial in trials
        ],
    }
