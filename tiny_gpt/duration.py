"""Seconds and times of day as people say them."""

import re
import time

_UNITS = {"d": 86_400, "h": 3_600, "min": 60, "m": 60, "s": 1}
_PART = r"(\d+(?:\.\d+)?) *(d|h|min|m|s) *"
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)")
# No budget is longer; it keeps dates and sums in range.
MAX_S = 366 * 86_400


def format_duration(seconds: float) -> str:
    """75 -> "1 min 15 s", 13500 -> "3 h 45 min"."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def format_milliseconds(seconds: float) -> str:
    """0.0413 -> "41 ms", 0.0041 -> "4.1 ms"."""
    ms = 1e3 * seconds
    return f"{ms:,.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def clock_time_in(seconds: float) -> str:
    """The time of day in so many seconds, with the day where that is not plain."""
    return time.strftime("%H:%M" if seconds < 20 * 3600 else "%A %H:%M", time.localtime(time.time() + seconds))


def parse_duration(text: str) -> float:
    """ "90" -> 90, "5m" -> 300, "1h30m" and "1h30" -> 5400, "1.5h" -> 5400; raises ValueError for anything else, and
    for 0."""
    text = text.strip()
    if re.fullmatch(r"\d+ *h *\d+", text):
        text += "m"
    text += "s" if re.fullmatch(r"[\d.]+", text) else ""
    if not re.fullmatch(f"(?:{_PART})+", text):
        raise ValueError("no duration")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
    if not 0 < seconds <= MAX_S:
        raise ValueError("no time at all, or more than a year")
    return seconds


def next_time(clock: str, now: float) -> float:
    """The next instant after `now` at which the local clock shows `clock`, such as "07:00"; raises ValueError.

    Both instants as time.time() counts them, so that a change to summer time in between is right.
    """
    match = _CLOCK.fullmatch(clock.strip())
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise ValueError("no time of day")
    year, month, day, *_ = time.localtime(now)
    for days in (0, 1):
        instant = time.mktime((year, month, day + days, int(match[1]), int(match[2]), 0, 0, 0, -1))
        if instant > now:
            return instant
    return now + 86_400  # a clock set back at that very hour
