"""`tiny-gpt doctor`: test this machine's arithmetic before a long run, and say which device and precision are safe.

Also prints the facts of the machine that matter for an overnight run: memory, disk space and battery.
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

from tiny_gpt.cli.kept_checks import keep_checks, read_checks
from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.device import (
    PRECISIONS,
    available_devices,
    candidate_precisions,
    configure_torch,
    describe_device,
    pick_device,
)
from tiny_gpt.duration import format_duration
from tiny_gpt.errors import UsageError
from tiny_gpt.host.battery import system_battery
from tiny_gpt.numerics.self_test import Result, describe, self_test
from tiny_gpt.planning.autotune import choose_backend
from tiny_gpt.planning.measurement import compilation_notices
from tiny_gpt.planning.types import BackendChoice
from tiny_gpt.ui.terminal import check_mark, printable

EVERY_DEVICE = "all"
# About the number of different characters in an English text, for autotuning the default model.
CHAR_VOCAB_SIZE = 256
# An overnight run of the default model needs less of either; below this it may run out before morning.
MIN_DISK_BYTES = MIN_MEMORY_BYTES = 2e9
# The columns of the table of checks.
NAME_WIDTH, RESULT_WIDTH = 28, 14

Print = Callable[[str], None]


@dataclass(frozen=True)
class PrecisionReport:
    """The results of one device in one precision."""

    device: str
    precision: str
    is_auto: bool
    """Whether `auto` chooses this precision on this device."""
    results: list[Result]
    choice: BackendChoice | None = None
    """What autotuning chose for the default model on this device; in the report of its precision only."""
    age_s: float = 0.0
    """Seconds since the checks were done, where the results of an earlier call were kept."""

    @property
    def is_safe(self) -> bool:
        return all(result.ok for result in self.results)

    def __str__(self) -> str:
        return f"{self.device} with {self.precision}"


def examine(device_name: str = EVERY_DEVICE, as_json: bool = False, again: bool = False) -> int:
    """Test the device of this name, "auto" for the preferred one or "all" for each, and print the results.

    `again`: also where the results of an earlier call are kept.

    Returns the exit code: 0 if what `auto` chooses is safe, else 1. Raises UsageError for a device that is not here.
    """
    devices = every_device() if device_name == EVERY_DEVICE else [pick_device(device_name)]
    show: Print = (lambda line: None) if as_json else (lambda line: print(printable(line), flush=True))
    start = time.perf_counter()
    facts = machine_facts()
    for line in fact_lines(facts):
        show(line)
    reports = [report for device in devices for report in examine_device(device, show, again)]
    auto = next(report for report in reports if report.is_auto)  # devices are in the order that auto prefers
    elapsed_s = time.perf_counter() - start
    kept_s = [report.age_s for report in reports if report.age_s]
    took = f"All checks took {elapsed_s:.0f} s."
    if kept_s:
        took = f"Checked {format_duration(max(kept_s))} ago; --again checks anew."
    show(f"Percentages: error / largest error due to rounding. {took}")
    show("")
    for line in verdict(reports, auto):
        show(line)
    if as_json:
        print(json.dumps(as_dict(facts, reports, auto, elapsed_s), indent=2))
    return 0 if auto.is_safe else 1


def every_device() -> list[torch.device]:
    """Each device once, the preferred first; cuda is another name of cuda:0."""
    return [torch.device(name) for name in available_devices() if name != "cuda:0"]


def examine_device(device: torch.device, show: Print, again: bool = False) -> list[PrecisionReport]:
    """Test one device in every precision that it supports, and show each row of results as it is known."""
    torch.set_float32_matmul_precision("highest")  # undo what configure_torch set for another device
    configure_torch(device)
    # On GPUs a run of one epoch, too short for torch.compile, which would take a minute here.
    config = RunConfig() if device.type == "cpu" else RunConfig(train=TrainConfig(epochs=1))
    for notice in compilation_notices(config, device):
        show(notice.text)
    choice = choose_backend(config, CHAR_VOCAB_SIZE, device)
    precisions = [name for name in PRECISIONS if is_supported(name, device)]
    show("")
    show(_table_row(describe_device(device), precisions))
    kept = None if again else read_checks(device, precisions)
    rows = []
    for row in zip(
        *(kept.results[name] if kept else self_test(device, PRECISIONS[name]) for name in precisions), strict=True
    ):
        show(_table_row(row[0].name, [result_cell(result) for result in row]))
        rows.append(row)
    by_precision = {name: list(results) for name, results in zip(precisions, zip(*rows, strict=True), strict=True)}
    if kept is None:
        keep_checks(device, by_precision)
    reports = []
    for precision, results in by_precision.items():
        own = choice if precision == choice.candidate.precision else None
        age_s = kept.age_s if kept else 0.0
        reports.append(PrecisionReport(str(device), precision, own is not None, results, own, age_s))
    for report in reports:
        for result in report.results:
            if result.detail:
                show(f"  {report}: {result.detail if result.ok else describe(result)}")
    return reports


def is_supported(precision: str, device: torch.device) -> bool:
    """Whether --precision may name it on `device`."""
    try:
        candidate_precisions(precision, device)
    except UsageError:
        return False
    return True


def result_cell(result: Result) -> str:
    """✓ 12%, ✓ exact, ✗ 35.0x (times the bound), ✗ NaN, ✗ wrong"""
    good = check_mark(sys.stdout)
    bad = "✗" if good == "✓" else "x"
    if result.ok:
        return f"{good} {result.error / result.bound:.0%}" if result.bound else f"{good} exact"
    if math.isnan(result.error):
        return f"{bad} NaN"
    share = result.error / result.bound if result.bound else math.inf
    return f"{bad} {share:,.1f}x" if share < 1e6 else f"{bad} wrong"


def _table_row(name: str, cells: list[str]) -> str:
    return (f"{name:<{NAME_WIDTH}}" + "".join(f"{cell:<{RESULT_WIDTH}}" for cell in cells)).rstrip()


def verdict(reports: list[PrecisionReport], auto: PrecisionReport) -> Iterator[str]:
    """What `auto` chooses, what is safe, and the flags to use where the choice is not."""
    safe = [report for report in reports if report.is_safe]
    backend = f", backend {auto.choice.candidate.backend}" if auto.choice and was_timed(auto) else ""
    yield f"auto chooses {auto}{backend}: {reason(auto)}."
    if auto.choice:
        if was_timed(auto):
            yield f"  Backends measured: {auto.choice.figures}."
        yield from auto.choice.notes
    for report in reports:
        if not report.is_safe:
            yield f"Not safe: {report} ({'; '.join(result.name for result in report.results if not result.ok)})."
    if safe:
        yield f"Safe for training: {join([str(report) for report in safe])}."
    if not auto.is_safe and safe:
        yield f"Train with: {' '.join(flags(safe))}"
    if not safe:
        yield "Nothing tested here is safe: training would silently give a worse model. Update torch (make setup) and"
        yield "the system, restart the machine, and try again; tiny-gpt doctor without --device tests every device."


def reason(auto: PrecisionReport) -> str:
    """Why `auto` chooses this precision and backend on this device."""
    if was_timed(auto):
        return "the fastest for the default model"
    if auto.device == "mps":
        return "bf16 is no faster there"
    return "it has bf16 units" if auto.precision == "bf16" else "it has no bf16 units"


def was_timed(auto: PrecisionReport) -> bool:
    """Whether autotuning had alternatives."""
    return auto.choice is not None and len(auto.choice.seconds) > 1


def flags(safe: list[PrecisionReport]) -> list[str]:
    """The flags for the first safe device, in the precision that `auto` chooses where that is safe."""
    best = next((report for report in safe if report.device == safe[0].device and report.is_auto), safe[0])
    device = [] if best.device == available_devices()[0] else ["--device", best.device]
    return device + ([] if best.is_auto else ["--precision", best.precision])


def join(words: list[str]) -> str:
    """a, b or c."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def machine_facts() -> dict[str, Any]:
    """Versions, memory, disk space and battery, as JSON values."""
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
    """Charge and whether it is plugged in; None without a battery, or where the system does not report it."""
    try:
        sensor = system_battery()
    except Exception:  # some systems lack the call, others the files it reads
        return None
    return sensor and {"percent": round(sensor.percent), "plugged_in": sensor.power_plugged}


def fact_lines(facts: dict[str, Any]) -> Iterator[str]:
    """`machine_facts` as text, with advice where something may end an overnight run early."""
    yield f"torch {facts['torch']}, Python {facts['python']}, {facts['system']}"
    memory, free = facts["memory_bytes"], facts["free_memory_bytes"]
    advice = "" if free >= MIN_MEMORY_BYTES else "; close other programs before training overnight"
    yield f"memory      {free / 1e9:,.1f} of {memory / 1e9:,.1f} GB free{advice}"
    disk = facts["free_disk_bytes"]
    advice = "" if disk >= MIN_DISK_BYTES else "; make room before training overnight"
    yield f"disk        {disk / 1e9:,.1f} GB free in this folder{advice}"
    if power := facts["battery"]:
        advice = {True: ", plugged in", False: "; plug it in before training overnight", None: ""}[power["plugged_in"]]
        yield f"battery     {power['percent']}%{advice}"


def as_dict(
    facts: dict[str, Any], reports: list[PrecisionReport], auto: PrecisionReport, elapsed_s: float
) -> dict[str, Any]:
    """Everything that --json prints; errors that are NaN or infinite are null."""
    safe = [report for report in reports if report.is_safe]
    choice = auto.choice
    return {
        **facts,
        "auto": {"device": auto.device, "precision": auto.precision}
        | ({"backend": choice.candidate.backend, "seconds": choice.seconds} if choice else {}),
        "safe": auto.is_safe,
        "flags": flags(safe) if safe and not auto.is_safe else [],
        "elapsed_s": round(elapsed_s, 2),
        "reports": [
            {
                "device": report.device,
                "precision": report.precision,
                "safe": report.is_safe,
                "age_s": report.age_s,
                "checks": [
                    asdict(result) | {"error": result.error if math.isfinite(result.error) else None}
                    for result in report.results
                ],
            }
            for report in reports
        ],
    }
