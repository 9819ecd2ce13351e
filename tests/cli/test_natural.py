"""What people type is understood, or told what it is called here."""

import re
import time
from pathlib import Path

import pytest

from tiny_gpt.cli.natural import NOT_HERE, OTHER_NAMES, natural_arguments
from tiny_gpt.duration import next_time, parse_duration
from tiny_gpt.errors import UsageError

NOON = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("6 hours", 21600),
        ("6 Hours", 21600),
        ("6hours", 21600),
        ("6hrs", 21600),
        ("6 hr", 21600),
        ("6H", 21600),
        ("1 hour 30 minutes", 5400),
        ("1 hour and 30 min", 5400),
        ("1h30min", 5400),
        ("90 mins", 5400),
        ("90 minutes", 5400),
        ("an hour", 3600),
        ("half an hour", 1800),
        ("2 days", 172800),
        ("6 h 5", 21900),
        ("45 seconds", 45),
        ("45sec", 45),
        ("0.5h", 1800),
    ],
)
def test_durations_as_people_write_them(given, seconds):
    assert parse_duration(given) == seconds
    words = natural_arguments(["book.txt", "--for", *given.split(), "--seed", "1"])
    assert parse_duration(words[2]) == seconds and words[3:] == ["--seed", "1"]


@pytest.mark.parametrize("given", ["6 books", "h", "5 hours ago", "-6h", "6..h", "1h-2h", "tonight", "6 m s", ""])
def test_what_is_no_duration(given):
    with pytest.raises(ValueError, match=r".*"):
        parse_duration(given)


@pytest.mark.parametrize(
    ("given", "hour", "minute"),
    [
        ("7am", 7, 0),
        ("7 AM", 7, 0),
        ("7 a.m.", 7, 0),
        ("7pm", 19, 0),
        ("7:30 pm", 19, 30),
        ("12am", 0, 0),
        ("12pm", 12, 0),
        ("07:00", 7, 0),
        ("7.30", 7, 30),
        ("7h30", 7, 30),
        ("7 o'clock", 7, 0),
        ("noon", 12, 0),
        ("midnight", 0, 0),
        ("23:59", 23, 59),
    ],
)
def test_times_of_day_as_people_write_them(given, hour, minute):
    at = time.localtime(next_time(given, NOON))
    assert (at.tm_hour, at.tm_min) == (hour, minute)
    assert natural_arguments(["--until", *given.split()])[1] == given


@pytest.mark.parametrize("given", ["7", "25:00", "13pm", "0am", "7:60", "7 hours", "dawn", "", "7:5"])
def test_what_is_no_time_of_day(given):
    with pytest.raises(ValueError, match=r".*"):
        next_time(given, NOON)


@pytest.mark.parametrize("arguments", [["--for", "6"], ["--for=6"], ["--for", "6.5"], ["--until", "7"]])
def test_a_bare_number_is_asked_about(arguments):
    with pytest.raises(UsageError) as error:
        natural_arguments(arguments)
    assert error.value.code == "number-without-unit"
    assert ("6h" in str(error.value)) or ("6.5h" in str(error.value)) or ("7am" in str(error.value))


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("10k", "10000"),
        ("1.5M", "1500000"),
        ("2 m", "2000000"),
        ("1,000,000", "1000000"),
        ("1_000", "1000"),
        ("1b", "1000000000"),
        ("1e6", "1000000"),
        ("2.5E3", "2500"),
        ("1.5e0", "1.5e0"),
        ("500", "500"),
        ("many", "many"),
        ("1,5", "1,5"),
    ],
)
def test_counts_as_people_write_them(given, count):
    for flag in ("--tokens", "--steps", "--vocab-size", "--vocab_size"):
        assert natural_arguments([flag, given]) == [flag.replace("_", "-"), count]
        assert natural_arguments([f"{flag}={given}"]) == [flag.replace("_", "-"), count]


@pytest.mark.parametrize("flag", [*OTHER_NAMES, *NOT_HERE])
def test_flags_of_other_tools_are_named_as_ours(flag):
    for spelling in (flag, flag.replace("-", "_").replace("__", "--", 1)):
        with pytest.raises(UsageError) as error:
            natural_arguments(["book.txt", spelling, "3"])
        assert error.value.code == ("flag-not-here" if flag in NOT_HERE else "flag-of-another-tool")
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert not re.search(rf"{flag}[ ,]", reference), "it is a flag of ours"
    if flag in OTHER_NAMES:
        assert re.search(rf"{OTHER_NAMES[flag].split()[0]}\b", reference), "what is named must exist"


def test_other_words_stay_as_they_are():
    words = ["my book.txt", "--prompt", "--", "6", "--seed=3", "--temperature", "0.7", "-h", "--stop=6 hours"]
    assert natural_arguments(words) == words
