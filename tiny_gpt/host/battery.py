"""Whether a laptop's battery is too low to train on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PAUSE_BELOW_PERCENT = 20.0
CONTINUE_ABOVE_PERCENT = 25.0
# Looks that must agree: sensors give nonsense now and then, as on waking up.
AGREEING_LOOKS = 2


class Battery:
    """`is_low` once the battery discharges below 20%, until it is plugged in or above 25%.

    `read` gives what psutil.sensors_battery does. Where it gives None or no figures, or raises, nothing is low.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self.is_low = False
        self.percent = 0.0
        """When it was last too low to train on."""
        self._read = read
        self._n_disagreeing = 0

    def look(self) -> None:
        """Read the sensor, which may take format_milliseconds."""
        disagrees = self._reads_low() != self.is_low
        self._n_disagreeing = self._n_disagreeing + 1 if disagrees else 0
        if self._n_disagreeing == AGREEING_LOOKS:
            self.is_low = not self.is_low
            self._n_disagreeing = 0

    @property
    def deserves_attention(self) -> bool:
        """Whether it is worth looking often."""
        return self.is_low or self._n_disagreeing > 0

    def _reads_low(self) -> bool:
        try:
            reading = self._read()
            percent = float(reading.percent)
            discharges = reading.power_plugged is False  # None where it is not known
        except Exception:  # psutil has as many ways to fail as there are laptops
            return False
        is_low = 0 <= percent < PAUSE_BELOW_PERCENT or (self.is_low and 0 <= percent <= CONTINUE_ABOVE_PERCENT)
        if discharges and is_low:
            self.percent = percent
        return discharges and is_low


def system_battery() -> Any:
    """psutil's reading of the battery that drives this machine; None if there is none."""
    return None if sys.platform == "linux" and _only_devices_have_batteries() else psutil.sensors_battery()


def _only_devices_have_batteries(supplies: str = "/sys/class/power_supply") -> bool:
    """Whether psutil would take a wireless mouse's battery for the machine's."""
    scopes = [path.read_text() for path in Path(supplies).glob("*/scope")]
    return any(scope.strip() == "Device" for scope in scopes) and not any(Path(supplies).glob("BAT*"))
