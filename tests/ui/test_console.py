"""What a person sees of a run: the guide's very lines, at any width, in any encoding, on a terminal and off."""

import io
import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.duration import format_duration
from tiny_gpt.run.events import (
    EpochDone,
    Evaluated,
    Finished,
    Prepared,
    RolledBack,
    Saved,
    StepDone,
    Stopping,
    ThroughputMeasured,
    Warned,
)
from tiny_gpt.ui import console
from tiny_gpt.ui.console import LABEL, WIDE, Console
from tiny_gpt.ui.log import LogFile
from tiny_gpt.ui.metrics import MetricsFile
from tiny_gpt.ui.terminal import make_safe, printable

ITERS, EPOCHS = 4, 80
CONFIG = RunConfig().with_flat({"iters_per_epoch": ITERS, "epochs": EPOCHS, "eval_interval": 2}, "test")
LAST_STEP = 42 * ITERS  # of the epoch that the guide shows
PREPARED = Prepared(
    device="cpu (2 threads)",
    precision="fp32",
    backend="fused",
    backend_reason="backends measured: fused fp32 56 ms, eager fp32 71 ms; using fused fp32",
    n_characters=1_115_394,
    n_documents=1,
    sources=["python-docs"],
    notes=[f"skipped 1: reason {i}" for i in range(6)],
    model=CONFIG.model,
    train=CONFIG.train,
    tokenizer="char",
    vocab_size=256,
    train_tokens=1_003_855,
    val_tokens=111_539,
    val_tokens_scored=40_960,
    n_parameters=3_222_784,
    tokens_per_step=8192,
    earlier_run=Path("earlier/2026-01-01"),
    steps_done=0,
    history=[],
)
FINISHED = Finished(
    best_path=Path("tiny_gpt_best.pt"),
    best_epoch=42,
    best_val_loss=1.2456,
    best_val_bits_per_byte=1.797,
    scored_tokens=111_538,
    final_path=Path("tiny_gpt_final.pt"),
    last_step=LAST_STEP,
    elapsed_s=13_500.0,
    eval_share=0.04,
    save_share=0.002,
    peak_memory_bytes=2**30,
    stopped_by=None,
    incidents=[],
)

LOSSES = "train_loss=1.1234, val_loss=1.2456"
DETAILS = f"{LOSSES}, batch_loss=1.1100, lr=2.5e-04"
CLOCK = r"\d+:\d\d(:\d\d)?"
SPEED = r"\d+\.\d\d(it/s|s/it)"


class Stream(io.TextIOWrapper):
    """A terminal, or a file, that remembers."""

    def __init__(self, is_terminal, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding, errors="replace", newline="\n")
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    def lines(self):
        """All that was ever drawn, each state of a bar as a line of its own."""
        self.flush()
        drawn = self.buffer.getvalue().decode(self.encoding)
        return [line.rstrip() for line in re.split(r"[\r\n]", drawn.replace("\x1b[A", "")) if line.strip()]


def evaluated(step, **changes):
    values = dict(
        step=step,
        epoch=42,
        train_loss=1.1234,
        val_loss=1.2456,
        val_bits_per_byte=1.797,
        batch_loss=1.11,
        learning_rate=2.5e-4,
        grad_norm=0.5,
        tokens_per_s=20_000.0,
        elapsed_s=100.0,
    )
    return Evaluated(**values | changes)


def epoch_42():
    """The guide's epoch, evaluated twice."""
    for step in range(LAST_STEP - ITERS + 1, LAST_STEP + 1):
        evaluates = step % 2 == 0
        yield StepDone(step, 1.11 if evaluates else None, 2.5e-4)
        if evaluates:
            yield evaluated(step)
            yield Saved(Path("tiny_gpt_best.pt"), is_best=True, val_loss=1.2456)  # told once, at the epoch's end
    yield EpochDone(42, 1.1234, 1.2456)


def shown(events, stream, config=CONFIG):
    consumer = Console(config, stream)
    for event in events:
        consumer.consume(event)
    consumer.close()
    return stream.lines()


def test_a_wide_terminal_shows_the_guides_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    lines = shown(epoch_42(), Stream(is_terminal=True))
    bar = rf"Epoch 42/80: 100%\|███\| 4/4 \[{CLOCK}<00:00, {SPEED}, {re.escape(DETAILS)}\]"
    assert re.fullmatch(bar, lines[-3])
    assert lines[-2:] == [
        "Epoch 42/80 complete - Train: 1.1234, Val: 1.2456",
        "✓ Saved best model (val_loss=1.2456) to tiny_gpt_best.pt",
    ]
    halfway = rf"Epoch 42/80:  50%\|█▌ \| 2/4 \[{CLOCK}<{CLOCK}, {SPEED}, {re.escape(DETAILS)}\]"
    assert any(re.fullmatch(halfway, line) for line in lines)


def test_off_a_terminal_there_are_plain_lines_and_no_bars():
    lines = shown(epoch_42(), Stream(is_terminal=False))
    assert [re.sub(SPEED, "SPEED", line) for line in lines] == [
        f"Epoch 42/80: 2/4 [SPEED, {DETAILS}]",
        f"Epoch 42/80: 4/4 [SPEED, {DETAILS}]",
        "Epoch 42/80 complete - Train: 1.1234, Val: 1.2456",
        "✓ Saved best model (val_loss=1.2456) to tiny_gpt_best.pt",
    ]


@pytest.mark.parametrize("columns", [10, 40, 79, 80, 100, WIDE - 1, WIDE, 140, 300])
def test_no_state_of_a_bar_is_wider_than_its_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(console, "_it_per_s", lambda rate: "100.42it/s")
    lines = shown(epoch_42(), Stream(is_terminal=True))
    bars = [line for line in lines if line.startswith("Epoch") and "complete" not in line]
    assert len(bars) >= 2 and max(map(len, bars)) <= columns
    if columns >= 80:
        assert LOSSES in bars[-1] and bars[-1].endswith("]")
    if columns >= WIDE:
        assert DETAILS in bars[-1]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_stream_without_utf8_gets_a_star_for_the_check_mark_and_a_bar_it_can_show(monkeypatch, encoding, is_terminal):
    monkeypatch.setenv("COLUMNS", "140")
    lines = shown([PREPARED, *epoch_42(), FINISHED], Stream(is_terminal, encoding))
    assert "* Saved best model (val_loss=1.2456) to tiny_gpt_best.pt" in lines
    assert "?" not in "".join(line for line in lines if "100%" in line)
    if is_terminal:
        assert any("|###|" in line for line in lines)


TIMED = RunConfig().with_flat({"for_": "5m"}, "test")


def timed_run():
    yield replace(PREPARED, left_s=300.0, notes=[])
    for step in range(1, 5):
        yield StepDone(step, None, 2.5e-4, progress=step / 4, left_s=300.0 - 75 * step)
        if step % 2 == 0:
            yield evaluated(step)
    yield replace(FINISHED, best_step=4, left_s=2.2)


def test_a_run_that_a_clock_ends_tells_when_shows_the_time_to_go_and_compares(monkeypatch):
    lines = [re.sub(SPEED, "SPEED", line) for line in shown(timed_run(), Stream(is_terminal=False), TIMED)]
    first = r"training   until \d\d:\d\d, 5 min 00 s from now \(--for 5m\); 8,192 tokens a step"
    assert any(re.fullmatch(first, line) for line in lines)
    assert f" 50%, step 2: 2 min 30 s to go [SPEED, {DETAILS}]" in lines
    assert "best model step 4, val_loss=1.2456 over 111,538 validation tokens, 1.797 bits per byte" in lines
    assert lines[-1] == "asked      --for 5m: this is 2 s before its end"
    monkeypatch.setenv("COLUMNS", "140")
    bars = [re.sub(SPEED, "SPEED", line) for line in shown(timed_run(), Stream(is_terminal=True), TIMED)]
    half = re.compile(rf"Training:  50%\|█▌ \| 2 min 30 s to go \[{CLOCK}, SPEED, {re.escape(DETAILS)}\]")
    assert any(half.fullmatch(line) for line in bars)


def test_a_last_epoch_of_fewer_steps_is_shown_as_long_as_it_is():
    config = RunConfig().with_flat({"iters_per_epoch": 4, "steps": 6}, "test")
    events = [replace(PREPARED, total_steps=6), StepDone(5, None, 0.1), StepDone(6, None, 0.1), evaluated(6, epoch=2)]
    lines = shown([*events, EpochDone(2, 1.1234, 1.2456)], Stream(is_terminal=False), config)
    assert any(line.startswith("training   6 steps, 8,192 tokens a step: 49,152 tokens") for line in lines)
    assert any(line.startswith("Epoch 2/2: 2/2 [") for line in lines) and lines[-1].startswith("Epoch 2/2 complete")


def test_why_a_path_was_taken_is_told_to_those_who_ask():
    asked = replace(CONFIG, train=replace(CONFIG.train, verbose=True))
    assert not any("paths measured" in line for line in shown([PREPARED], Stream(is_terminal=False)))
    assert LABEL.format("") + PREPARED.why in shown([PREPARED], Stream(is_terminal=False), asked)


def test_every_path_has_words():
    assert {*console.BACKENDS, "auto"} == set(get_args(get_type_hints(TrainConfig)["path"]))


def test_before_the_first_step_a_person_learns_what_is_about_to_happen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    text = "\n".join(shown([PREPARED], Stream(is_terminal=True)))
    for fact in (
        "cpu (2 threads), fp32, fused kernels",
        "python-docs: 1,115,394 characters",
        "vocabulary 256",
        "1,003,855 to learn from",
        "111,539 held out for validation, 40,960 fixed ones of them scored each time",
        "3,222,784 parameters",
        "8,192 tokens a step",
        "skipped 1: reason 0",
        "and 2 more such lines: tiny-gpt data shows them",
        "earlier/2026-01-01",
        "Epoch 1/80:   0%",
    ):
        assert fact in text


def test_the_time_that_a_run_takes_is_told_once_measured():
    (line,) = shown([ThroughputMeasured(tokens_per_s=20_000.0, remaining_s=13_500.0)], Stream(is_terminal=False))
    assert re.fullmatch(r"time +20,000 tokens/s: about 3 h 45 min to go, until \d\d:\d\d", line)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl+C"), (signal.SIGTERM, "SIGTERM")])
def test_a_stop_is_answered_at_once_by_its_name(number, name):
    (line,) = shown([Stopping(number)], Stream(is_terminal=False))
    assert line.startswith(f"{name}: the step is done; evaluating and saving")


def test_at_the_end_stand_the_best_loss_and_what_it_was_measured_on():
    text = "\n".join(shown([FINISHED], Stream(is_terminal=False)))
    assert "epoch 42, val_loss=1.2456 over 111,538 validation tokens, 1.797 bits per byte" in text
    assert "3 h 45 min for 168 steps, 4% of it evaluating, 0.2% saving; peak memory 1.00 GiB" in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_error_in_mid_epoch_begins_on_a_line_of_its_own(monkeypatch, is_terminal):
    monkeypatch.setenv("COLUMNS", "140")
    stream = Stream(is_terminal)
    shown([PREPARED, StepDone(1, 5.5, 1e-5)], stream)
    assert stream.buffer.getvalue().endswith(b"\n")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_that_went_away_can_still_be_closed(is_terminal):
    stream = Stream(is_terminal)
    consumer = Console(CONFIG, stream)
    consumer.consume(PREPARED)
    stream.close()
    consumer.close()


def test_metrics_are_one_line_of_json_for_each_evaluation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("an older run's\n")
    metrics = MetricsFile(path)
    for event in [PREPARED, *epoch_42(), FINISHED]:
        metrics.consume(event)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [LAST_STEP - 2, LAST_STEP]
    assert rows[0] == {
        "step": LAST_STEP - 2,
        "epoch": 42,
        "train_loss": 1.1234,
        "val_loss": 1.2456,
        "val_bits_per_byte": 1.797,
        "batch_loss": 1.11,
        "lr": 2.5e-4,
        "grad_norm": 0.5,
        "tokens_per_s": 20_000.0,
        "elapsed_s": 100.0,
    }


def test_metrics_of_a_resumed_run_begin_with_what_the_checkpoint_knew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3}\n{"step": 4}\n{"st')  # beyond the checkpoint, and cut off
    metrics = MetricsFile(path)
    metrics.consume(replace(PREPARED, steps_done=2, history=[evaluated(1), evaluated(2)]))
    for event in (evaluated(3), RolledBack(1, [evaluated(1)]), evaluated(2), evaluated(3)):
        metrics.consume(event)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_metrics_that_found_no_room_are_all_there_once_there_is_some(tmp_path):
    folder = tmp_path / "run"
    metrics = MetricsFile(folder / "metrics.jsonl")
    folder.write_text("in the way")
    metrics.consume(PREPARED)
    metrics.consume(evaluated(1))
    folder.unlink()
    metrics.consume(evaluated(2))
    folder.joinpath("metrics.jsonl").unlink()  # someone tidied up in the night
    metrics.consume(evaluated(3))
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_the_log_has_every_line_with_its_time(tmp_path):
    log = LogFile(CONFIG, tmp_path / "train.log")
    for event in (PREPARED, *epoch_42(), Warned(168, "out of memory"), FINISHED):
        log.consume(event)
    text = (tmp_path / "train.log").read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in text.splitlines())
    for words in ("Epoch 42/80 complete - Train: 1.1234, Val: 1.2456", "step 168: out of memory", "3 h 45 min for"):
        assert words in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_resumed_run_says_where_it_goes_on(monkeypatch, is_terminal):
    monkeypatch.setenv("COLUMNS", "140")
    lines = shown([replace(PREPARED, steps_done=LAST_STEP - 2)], Stream(is_terminal))
    assert "after step 166 of 320, in epoch 42" in "\n".join(lines)
    if is_terminal:
        assert any(line.startswith("Epoch 42/80:  50%") for line in lines)


def test_what_a_night_has_met_stands_at_its_end():
    met = [f"trouble {i}" for i in range(12)]
    text = "\n".join(shown([replace(FINISHED, incidents=met)], Stream(is_terminal=False)))
    assert "trouble 11" in text and "trouble 3" not in text and "4 more before that: train.log tells all" in text


def test_a_stream_made_safe_takes_any_text():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    make_safe(stream)
    stream.write("né \ud800 😀")
    stream.flush()
    assert stream.buffer.getvalue() == b"n? ? ?"


def test_what_a_terminal_would_obey_is_not_printed():
    assert printable("a\x1b[31m\x07\x9b\r\x00\ud800é中😀\n\tb") == "a�[31m�����é中😀\n\tb"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (75, "1 min 15 s"),
        (13_500, "3 h 45 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert format_duration(seconds) == text
