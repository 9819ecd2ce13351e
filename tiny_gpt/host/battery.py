"""Whether a laptop's battery is too low to train on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

# Training pauses below the first and resumes above the second, so that a reading which wavers does not toggle it.
PAUSE_BELOW_PERCENT = 20.0
RESUME_ABOVE_PERCENT = 25.0
# Readings in a row that must agree before the state changes: sensors report nonsense now and then, as on waking up.
N_AGREEING_READINGS = 2


class Battery:
    """`is_low` while the battery discharges below 20%, until it is plugged in or above 25%.

    `read_sensor` returns what psutil.sensors_battery does. If it returns None or no numbers, or raises, the battery
    counts as full: machines without a battery or with a broken sensor keep training.
    """

    def __init__(self, read_sensor: Callable[[], Any]) -> None:
        self.is_low = False
        self.percent = 0.0
        """The last reading that was low."""
        self._read_sensor = read_sensor
        self._n_disagreeing = 0

    def update(self) -> None:
        """Read the sensor, which may take milliseconds."""
        disagrees = self._reads_low() != self.is_low
        self._n_disagreeing = self._n_disagreeing + 1 if disagrees else 0
        if self._n_disagreeing == N_AGREEING_READINGS:
            self.is_low = not self.is_low
            self._n_disagreeing = 0

    @property
    def needs_polling(self) -> bool:
        """Whether to read the sensor often: the battery is low, or its state may be about to change."""
        return self.is_low or self._n_disagreeing > 0

    def _reads_low(self) -> bool:
        try:
            reading = self._read_sensor()
            percent = float(reading.percent)
            discharges = reading.power_plugged is False  # None where it is unknown
        except Exception:  # psutil fails in as many ways as there are laptops
            return False
        is_low = 0 <= percent < PAUSE_BELOW_PERCENT or (self.is_low and 0 <= percent <= RESUME_ABOVE_PERCENT)
        if discharges and is_low:
            self.percent = percent
        return discharges and is_low


def system_battery() -> Any:
    """psutil's reading of the battery that drives this machine; None if there is none."""
    return None if sys.platform == "linux" and _only_peripherals_have_batteries() else psutil.sensors_battery()


def _only_peripherals_have_batteries(supplies: str = "/sys/class/power_supply") -> bool:
    """Whether psutil would mistake a wireless mouse's battery for the machine's."""
    scopes = [path.read_text() for path in Path(supplies).glob("*/scope")]
    return any(scope.strip() == "Device" for scope in scopes) and not any(Path(supplies).glob("BAT*"))
