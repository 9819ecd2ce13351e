"""The console output of a run: the guide's lines, at any width, in any encoding, on a terminal and in a file."""

import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ui.support import CONFIG, FINISHED, LAST_STEP, PREPARED, Stream, epoch_42, evaluated
from tiny_gpt.backends import BACKENDS
from tiny_gpt.config import RunConfig
from tiny_gpt.planning.types import Forecast, Plan
from tiny_gpt.run.events import EpochDone, Saved, StepDone, Stopping, ThroughputMeasured, Warned
from tiny_gpt.ui import console
from tiny_gpt.ui.console import WIDE, Console
from tiny_gpt.ui.terminal import LABEL

VERBOSE = replace(CONFIG, train=replace(CONFIG.train, verbose=True))
LOSSES = "train_loss=1.1234, val_loss=1.2456"
DETAILS = f"{LOSSES}, batch_loss=1.1100, lr=2.5e-04"
CLOCK = r"\d+:\d\d(:\d\d)?"
SPEED = r"\d+\.\d\d(it/s|s/it)"


def printed(events, stream, config=CONFIG):
    consumer = Console(config, stream)
    for event in events:
        consumer.consume(event)
    consumer.close()
    return stream.lines()


# The guide's lines


def test_wide_terminal_shows_the_guides_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    lines = printed(epoch_42(), Stream(is_terminal=True))
    bar = rf"Epoch 42/80: 100%\|███\| 4/4 \[{CLOCK}<00:00, {SPEED}, {re.escape(DETAILS)}\]"
    assert re.fullmatch(bar, lines[-3])
    assert lines[-2:] == [
        "Epoch 42/80 complete - Train: 1.1234, Val: 1.2456",
        "✓ Saved best model (val_loss=1.2456) to tiny_gpt_best.pt",
    ]
    halfway = rf"Epoch 42/80:  50%\|█▌ \| 2/4 \[{CLOCK}<{CLOCK}, {SPEED}, {re.escape(DETAILS)}\]"
    assert any(re.fullmatch(halfway, line) for line in lines)


def test_file_gets_plain_lines_without_bars():
    lines = printed(epoch_42(), Stream(is_terminal=False))
    assert [re.sub(SPEED, "SPEED", line) for line in lines] == [
        f"Epoch 42/80: 2/4 [SPEED, {DETAILS}]",
        f"Epoch 42/80: 4/4 [SPEED, {DETAILS}]",
        "Epoch 42/80 complete - Train: 1.1234, Val: 1.2456",
        "✓ Saved best model (val_loss=1.2456) to tiny_gpt_best.pt",
    ]


def test_last_epoch_may_be_shorter():
    config = RunConfig().with_flat({"iters_per_epoch": 4, "steps": 6}, "test")
    events = [replace(PREPARED, total_steps=6), StepDone(5, None, 0.1), StepDone(6, None, 0.1), evaluated(6, epoch=2)]
    lines = printed([*events, EpochDone(2, 1.1234, 1.2456)], Stream(is_terminal=False), config)
    assert any(line.startswith("training   6 steps, 8,192 tokens per step: 49,152 tokens") for line in lines)
    assert any(line.startswith("Epoch 2/2: 2/2 [") for line in lines) and lines[-1].startswith("Epoch 2/2 complete")


# Terminals


@pytest.mark.parametrize("columns", [10, 40, 79, 80, 100, WIDE - 1, WIDE, 140, 300])
def test_bar_fits_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(console, "_format_rate", lambda rate: "100.42it/s")
    lines = printed(epoch_42(), Stream(is_terminal=True))
    bars = [line for line in lines if line.startswith("Epoch") and "complete" not in line]
    assert len(bars) >= 2 and max(map(len, bars)) <= columns
    if columns >= 80:
        assert LOSSES in bars[-1] and bars[-1].endswith("]")
    if columns >= WIDE:
        assert DETAILS in bars[-1]


def test_rows_wrap_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    warning = Warned(3, "a warning of many words " * 6)
    events = [PREPARED, warning, *epoch_42(), replace(FINISHED, incidents=["an incident of many words " * 6])]
    on_terminal = printed(events, Stream(is_terminal=True), VERBOSE)
    in_file = printed(events, Stream(is_terminal=False), VERBOSE)
    assert max(map(len, on_terminal)) <= 80 < max(map(len, in_file))
    bars = re.compile(r"Epoch \d+/80: .*")
    words, expected = (
        " ".join(line for line in lines if not bars.match(line)).split() for lines in (on_terminal, in_file)
    )
    assert words == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_other_encodings_get_star_and_ascii_bar(monkeypatch, encoding, is_terminal):
    monkeypatch.setenv("COLUMNS", "140")
    lines = printed([PREPARED, *epoch_42(), FINISHED], Stream(is_terminal, encoding))
    assert "* Saved best model (val_loss=1.2456) to tiny_gpt_best.pt" in lines
    assert "?" not in "".join(line for line in lines if "100%" in line)
    if is_terminal:
        assert any("|###|" in line for line in lines)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_close_ends_the_line(monkeypatch, is_terminal):
    monkeypatch.setenv("COLUMNS", "140")
    stream = Stream(is_terminal)
    printed([PREPARED, StepDone(1, 5.5, 1e-5)], stream)
    assert stream.buffer.getvalue().endswith(b"\n")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_close_survives_a_closed_terminal(is_terminal):
    stream = Stream(is_terminal)
    consumer = Console(CONFIG, stream)
    consumer.consume(PREPARED)
    stream.close()
    consumer.close()


# Before the first step


def test_setup_is_printed_before_the_first_step(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    text = "\n".join(printed([PREPARED], Stream(is_terminal=True), VERBOSE))
    for fact in (
        "cpu (2 threads), fp32, fused kernels",
        "python-docs: 1,115,394 characters",
        "vocabulary 256",
        "1,003,855 training tokens",
        "111,539 validation tokens, 40,960 scored at each evaluation",
        "3,222,784 parameters",
        "8,192 tokens per step",
        "skipped 1: reason 0",
        "and 2 more notes: see tiny-gpt data",
        "earlier/2026-01-01",
        "Epoch 1/80:   0%",
    ):
        assert fact in text


def test_verbose_prints_the_backend_reason():
    assert not any("backends measured" in line for line in printed([PREPARED], Stream(is_terminal=False)))
    assert LABEL.format("") + PREPARED.backend_reason in printed([PREPARED], Stream(is_terminal=False), VERBOSE)


def test_every_backend_has_a_description():
    assert set(console.BACKEND_DESCRIPTIONS) == set(BACKENDS)


def test_throughput_gives_the_time_left():
    event = ThroughputMeasured(tokens_per_s=20_000.0, remaining_s=13_500.0)
    (line,) = printed([event], Stream(is_terminal=False))
    assert re.fullmatch(r"time +20,000 tokens/s: about 3 h 45 min left, until \d\d:\d\d", line)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_resumed_run_names_its_step(monkeypatch, is_terminal):
    monkeypatch.setenv("COLUMNS", "140")
    lines = printed([replace(PREPARED, steps_done=LAST_STEP - 2)], Stream(is_terminal))
    assert "after step 166 of 320, in epoch 42" in "\n".join(lines)
    if is_terminal:
        assert any(line.startswith("Epoch 42/80:  50%") for line in lines)


# Time budgets

TIMED = RunConfig().with_flat({"for_": "5m"}, "test")


def timed_run():
    yield replace(PREPARED, left_s=300.0, notes=[])
    for step in range(1, 5):
        yield StepDone(step, None, 2.5e-4, progress=step / 4, left_s=300.0 - 75 * step)
        if step % 2 == 0:
            yield evaluated(step)
    yield replace(FINISHED, best_step=4, left_s=2.2)


def test_timed_run_prints_end_time_left_and_result():
    lines = [re.sub(SPEED, "SPEED", line) for line in printed(timed_run(), Stream(is_terminal=False), TIMED)]
    first = r"training   until \d\d:\d\d, 5 min 00 s from now \(--for 5m\); 8,192 tokens per step"
    assert any(re.fullmatch(first, line) for line in lines)
    assert f" 50%, step 2: 2 min 30 s left [SPEED, {DETAILS}]" in lines
    assert "best model step 4, val_loss=1.2456 over 111,538 validation tokens, 1.797 bits per byte" in lines
    assert lines[-1] == "budget     --for 5m: ended 2 s early"


def test_timed_run_has_a_bar_of_progress(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    lines = [re.sub(SPEED, "SPEED", line) for line in printed(timed_run(), Stream(is_terminal=True), TIMED)]
    half = re.compile(rf"Training:  50%\|█▌ \| 2 min 30 s left \[{CLOCK}, SPEED, 1\.797 bits per byte, batch_loss=.*\]")
    assert any(half.fullmatch(line) for line in lines), lines


# What a person reads


PLAN = Plan(700_000, 34, 1.6, 69_600, 0.9, 300.0, 2**30, Forecast(2.01, 1.62, 2.49), saturation_s=1e6)


def test_first_screen_says_which_text_until_when_and_how_good(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    prepared = replace(PREPARED, left_s=300.0, notes=[], plan=PLAN, earlier_run=None)
    lines = [line for line in printed([prepared], Stream(is_terminal=True), TIMED) if not line.startswith("Training:")]
    text = "\n".join(line for line in lines if line)
    labels = [line.split()[0] for line in text.splitlines() if line[0] != " "]
    assert labels == ["text", "training", "expected"] and len(text.splitlines()) <= 7, text
    for fact in ("until ", "--for 5m", "2.01 bits per byte", "8 is guessing", "--verbose", "train.log"):
        assert fact in text
    everything = "\n".join(printed([prepared], Stream(is_terminal=False), TIMED))
    assert all(label in everything for label in ("device  ", "tokens  ", "memory  ", "plan  ", "8 is guessing"))


def test_terminal_has_one_unit_for_quality_and_the_log_has_both(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    events = [*timed_run()]
    saved = [Saved(Path("best.pt"), True, 1.2456), Saved(Path("final.pt"), False, 1.2456)]
    events[-1:-1] = saved
    shown = "\n".join(printed(events, Stream(is_terminal=True), TIMED))
    assert "loss" not in shown and "Saved best model (1.797 bits per byte) to best.pt" in shown
    log = "\n".join(printed(events, Stream(is_terminal=False), TIMED))
    assert "val_loss=1.2456" in log and "1.797 bits per byte" in log


def test_two_lines_of_a_new_sample_are_shown_while_it_trains(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for is_terminal in (True, False):
        stream = Stream(is_terminal)
        consumer = Console(TIMED, stream)
        consumer.consume(replace(PREPARED, left_s=300.0, notes=[]))
        consumer.show_sample(1200, "The sea\x1b[2J\n\n" + "and more " * 9 + "\nthird")
        consumer.close()
        lines = stream.lines()
        assert ("step 1,200 writes:" in lines) is is_terminal
        if is_terminal:
            assert "  | The sea\N{REPLACEMENT CHARACTER}[2J" in lines and not any("third" in line for line in lines)
            assert max(map(len, lines)) <= 40


# The end


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl+C"), (signal.SIGTERM, "SIGTERM")])
def test_stop_signal_is_acknowledged_by_name(number, name):
    (line,) = printed([Stopping(number)], Stream(is_terminal=False))
    assert line.startswith(f"{name}: step finished; evaluating and saving")


def test_results_name_the_best_loss_and_its_tokens():
    text = "\n".join(printed([FINISHED], Stream(is_terminal=False)))
    assert "epoch 42, val_loss=1.2456 over 111,538 validation tokens, 1.797 bits per byte" in text
    assert "3 h 45 min for 168 steps, 4% of it evaluating, 0.2% saving; peak memory 1.00 GiB" in text


def test_results_list_the_latest_incidents():
    incidents = [f"trouble {i}" for i in range(12)]
    text = "\n".join(printed([replace(FINISHED, incidents=incidents)], Stream(is_terminal=False)))
    assert "trouble 11" in text and "trouble 3" not in text and "4 earlier ones: see train.log" in text
