"""Durations and times of day, to and from text."""

import re
import time

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_UNIT = r"d(?:ays?)?|h(?:(?:ou)?rs?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?"
_PART = rf"(\d+(?:\.\d+)?) *({_UNIT})(?![a-z]) *(?:and +)?"
_CLOCK = re.compile(r"(\d{1,2})(?:[:.h](\d\d))? *([ap])?(?:\.?m\.?)?(?: *o'clock)?")
_NAMED_TIMES = {"noon": "12:00", "midnight": "00:00"}
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


def is_bare_number(text: str) -> bool:
    """Whether a time was given as a number without a unit."""
    return re.fullmatch(r"[\d.]+", text.strip()) is not None and text.count(".") < 2


def parse_duration(text: str) -> float:
    """Seconds: "5m" -> 300, "1h30m" and "1h30" -> 5400, "1.5h" -> 5400, "6 hours" -> 21600, "1 hour and 5 min" -> 3900,
    "90" -> 90.

    Raises ValueError for any other text, for zero, and for more than a year.
    """
    text = re.sub(r"^(an?|one) +", "1 ", text.strip().lower()).replace("half an hour", "30m")
    if re.fullmatch(r"\d+ *h *\d+", text):
        text += "m"
    text += "s" if is_bare_number(text) else ""
    text = re.sub(r"(?<=[a-z])(?=\d)", " ", text)
    if not re.fullmatch(f"(?:{_PART})+", text):
        raise ValueError("not a duration")
    seconds = sum(float(number) * _UNITS[unit[0]] for number, unit in re.findall(_PART, text))
    if not 0 < seconds <= MAX_S:
        raise ValueError("zero, or more than a year")
    return seconds


def next_time(clock: str, now: float) -> float:
    """The first instant after `now` at which local clocks show `clock`: "07:00", "7am", "7:30 pm", "noon"; raises
    ValueError.

    Both instants are values of time.time(), so a change to or from daylight saving time in between is accounted for.
    """
    hour, minute = _hour_and_minute(clock)
    year, month, day, *_ = time.localtime(now)
    for days in (0, 1):
        instant = time.mktime((year, month, day + days, hour, minute, 0, 0, 0, -1))
        if instant > now:
            return instant
    return now + 86_400  # the clock goes back during this very hour


def _hour_and_minute(clock: str) -> tuple[int, int]:
    """ "7:30 pm" -> (19, 30); raises ValueError."""
    text = clock.strip().lower()
    match = _CLOCK.fullmatch(_NAMED_TIMES.get(text, text))
    if match is None:
        raise ValueError("not a time of day")
    hour, minute, half = int(match[1]), int(match[2] or 0), match[3]
    is_bare = match[2] is None and half is None and not text.endswith("o'clock")
    if hour > (12 if half else 23) or minute > 59 or (half and hour == 0) or is_bare:
        raise ValueError("not a time of day")
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return hour, minute
