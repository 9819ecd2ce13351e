"""Durations and times of day, to and from text."""

import re
import time

_UNITS = {"d": 86_400, "h": 3_600, "min": 60, "m": 60, "s": 1}
_PART = r"(\d+(?:\.\d+)?) *(d|h|min|m|s) *"
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)")
# The longest duration accepted; keeps dates and sums in range.
MAX_S = 366 * 86_400


def format_duration(seconds: float) -> str:
    """75 -> "1 min 15 s", 13500 -> "3 h 45 min"."""
    total = round(seconds)
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def format_milliseconds(seconds: float) -> str:
    """0.0413 -> "41 ms", 0.0041 -> "4.1 ms"."""
    ms = 1e3 * seconds
    return f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def clock_time_in(seconds: float) -> str:
    """The local time `seconds` from now: "07:00", with the weekday if that is more than 20 hours away."""
    return time.strftime("%H:%M" if seconds < 20 * 3600 else "%A %H:%M", time.localtime(time.time() + seconds))


def parse_duration(text: str) -> float:
    """Seconds: "90" -> 90, "5m" -> 300, "1h30m" and "1h30" -> 5400, "1.5h" -> 5400.

    Raises ValueError for any other text, for zero, and for more than a year.
    """
    text = text.strip()
    if re.fullmatch(r"\d+ *h *\d+", text):
        text += "m"
    text += "s" if re.fullmatch(r"[\d.]+", text) else ""
    if not re.fullmatch(f"(?:{_PART})+", text):
        raise ValueError("not a duration")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
    if not 0 < seconds <= MAX_S:
        raise ValueError("zero, or more than a year")
    return seconds


def next_time(clock: str, now: float) -> float:
    """The first instant after `now` at which local clocks show `clock`, such as "07:00"; raises ValueError.

    Both instants are values of time.time(), so a change to or from daylight saving time in between is accounted for.
    """
    match = _CLOCK.fullmatch(clock.strip())
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise ValueError("not a time of day")
    year, month, day, *_ = time.localtime(now)
    for days in (0, 1):
        instant = time.mktime((year, month, day + days, int(match[1]), int(match[2]), 0, 0, 0, -1))
        if instant > now:
            return instant
    return now + 86_400  # the clock goes back during this very hour
