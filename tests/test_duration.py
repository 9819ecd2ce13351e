"""Durations and times of day as users write them."""

import time

import pytest

from tiny_gpt.duration import next_time, parse_duration

NOON = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        ("2min", 120),
        ("1h30m", 5400),
        ("9h30", 34200),
        ("1h 30m", 5400),
        ("1.5h", 5400),
    ],
)
def test_durations_in_common_notations(text, seconds):
    assert parse_duration(text) == seconds


def test_a_time_of_day_is_its_next_occurrence():
    assert next_time("12:01", NOON) - NOON == 60
    assert next_time("07:00", NOON) == next_time("7:00", NOON) == NOON + 19 * 3600
    assert next_time("12:00", NOON) == NOON + 24 * 3600
