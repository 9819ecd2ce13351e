"""What the machine's sensors say while it trains: temperature and battery; NaN for what it has no sensor for."""

import math
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from tiny_gpt.host.battery import system_battery

# Some sensors take milliseconds to read, and what they measure changes slowly.
READ_INTERVAL_S = 20.0
# Linux's names of the sensors in processors, best first; "acpitz" is somewhere near.
_PROCESSOR_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "acpitz")
# Sensors report nonsense now and then.
_PLAUSIBLE_C = (1.0, 130.0)


class Sensors:
    """Of the machine and the device that a run computes on."""

    def __init__(self, read_battery: Callable[[], Any] = system_battery) -> None:
        self._read_battery = read_battery
        self._read_at = -math.inf
        self._temperature_c = self._battery_percent = math.nan

    def read(self, device: torch.device) -> dict[str, float]:
        """The fields of `Evaluated` that sensors know, as of the last READ_INTERVAL_S."""
        if time.monotonic() - self._read_at >= READ_INTERVAL_S:
            self._read_at = time.monotonic()
            self._temperature_c = _temperature_c(device)
            self._battery_percent = self._battery()
        return {"temperature_c": self._temperature_c, "battery_percent": self._battery_percent}

    def _battery(self) -> float:
        try:
            percent = float(self._read_battery().percent)
        except Exception:  # no battery, or a sensor that fails in its own way
            return math.nan
        return percent if 0 <= percent <= 100 else math.nan


def _temperature_c(device: torch.device) -> float:
    """Degrees Celsius of the GPU, or of the hottest part of the processor."""
    try:
        found = [float(torch.cuda.temperature(device))] if device.type == "cuda" else _processor_temperatures()
    except Exception:  # drivers and files of the system, each with its own errors
        return math.nan
    low, high = _PLAUSIBLE_C
    return max((value for value in found if low <= value <= high), default=math.nan)


def _processor_temperatures() -> list[float]:
    """Of all its sensors; [] outside Linux, where psutil knows none."""
    chips = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    chip = next((name for name in _PROCESSOR_CHIPS if chips.get(name)), None)
    return [float(sensor.current) for sensor in chips[chip]] if chip else []
