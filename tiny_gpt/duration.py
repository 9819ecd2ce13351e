"""Seconds as people say them."""


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s", 13500 -> "3 h 45 min"."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
