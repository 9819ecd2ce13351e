"""Training through the commands: output, files, signals, and consumers that fail."""

import json
import os
import re
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.cli.support import DETAILS, LOSS, REPORT_FILES, RUN_FILES, SPEED, TINY, files_of, flags, load, losses, rows
from tiny_gpt.cli import session
from tiny_gpt.cli.train import train_script
from tiny_gpt.config import DataConfig, RunConfig, TrainConfig
from tiny_gpt.model_io import model_file
from tiny_gpt.run import start
from tiny_gpt.run.events import Evaluated, Saved, StepDone, Stopping
from tiny_gpt.run.output_folder import archive_earlier_run
from tiny_gpt.ui import consumers
from tiny_gpt.ui.console import Console


def test_train_py_prints_the_guides_lines(trained):
    # On a busy machine the speed is measured late, and there may be a warning that training has become slower.
    lines = [line for line in trained[1].splitlines() if not re.match(r"step \d+: |time  ", line)]
    forms = [
        *(rf"Epoch 1/2: {at}/6 \[{SPEED}, {DETAILS}\]" for at in (3, 6)),
        rf"Epoch 1/2 complete - Train: {LOSS}, Val: {LOSS}",
        rf"(✓|\*) Saved best model \(val_loss={LOSS}\) to tiny_gpt_best.pt",
        *(rf"Epoch 2/2: {at}/6 \[{SPEED}, {DETAILS}\]" for at in (3, 6)),
        rf"Epoch 2/2 complete - Train: {LOSS}, Val: {LOSS}",
        rf"(✓|\*) Saved best model \(val_loss={LOSS}\) to tiny_gpt_best.pt",
        r"(✓|\*) Saved final model to tiny_gpt_final.pt",
    ]
    start = next(i for i, line in enumerate(lines) if line.startswith("Epoch"))
    for form, line in zip(forms, lines[start : start + len(forms)], strict=True):
        assert re.fullmatch(form, line), line
    assert any(line.startswith("A sample from the best model (epoch 2)") for line in lines)
    command = '  python3 inference.py --prompt "The" --temperature 0.8'
    assert lines[-3:] == ["Generate text:", command, "Report: report.html"]


def test_run_leaves_only_its_files(trained):
    assert files_of(trained[0]) == sorted([*RUN_FILES, *REPORT_FILES])


def test_metrics_have_one_line_per_evaluation(trained):
    found = rows(trained[0])
    assert [(row["step"], row["epoch"]) for row in found] == [(3, 1), (6, 1), (9, 2), (12, 2)]
    for row in found:
        assert row.keys() >= {"train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "elapsed_s"}
        for name in ("val_loss_error", "temperature_c", "battery_percent"):  # too few windows, and no such sensors
            del row[name]
        assert all(value > 0 for value in row.values())


def test_model_files_are_complete(trained):
    for name in ("tiny_gpt_best.pt", "tiny_gpt_final.pt"):
        content = torch.load(trained[0] / name, weights_only=True)
        assert content.keys() >= {"format_version", "weights", "model_config", "run_config", "tokenizer"}
        assert content["progress"]["step"] == 12 and content["progress"]["epoch"] == 2
        last = rows(trained[0])[-1]
        assert content["progress"]["val_loss"] == last["val_loss"]
        assert content["progress"]["train_loss"] == last["train_loss"]


def test_best_file_has_the_lowest_validation_loss(train, tmp_path, monkeypatch):
    """Even if the loss rises again, as it does with a learning rate of 2."""
    train(learning_rate=2.0, warmup_steps=0, epochs=4)
    ends = [row for row in rows(tmp_path) if row["step"] % TINY["iters_per_epoch"] == 0]
    lowest = min(ends, key=lambda row: row["val_loss"])
    assert load(tmp_path / "tiny_gpt_best.pt").progress.val_loss == lowest["val_loss"]
    assert load(tmp_path / "tiny_gpt_final.pt").progress.val_loss == ends[-1]["val_loss"]


def test_saved_config_reproduces_the_losses(trained, command, tmp_path):
    config = trained[0] / "config.json"
    assert json.loads(config.read_text())["n_layer"] == TINY["n_layer"]
    for program, more in (("train.py", []), ("tiny-gpt", ["train"])):
        folder = tmp_path / program
        assert command(program, *more, "--config", config, "--out-dir", folder).code == 0
        assert losses(folder) == losses(trained[0])
    assert command("train.py", "--config", config, "--out-dir", tmp_path, "--seed", 7).code == 0
    assert losses(tmp_path) != losses(trained[0])


def test_flags_override_the_settings_of_train_py(text, tmp_path, monkeypatch):
    settings = TINY | {"data": [str(text)], "seed": 5}
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "6", "--out-dir", str(tmp_path)])
    assert train_script(settings) == 0
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["seed"] == 6 and saved["n_layer"] == 1 and saved["data"] == [str(text)]


def test_earlier_run_in_the_folder_is_kept(train, tmp_path):
    train()
    kept = {name: (tmp_path / name).read_bytes() for name in RUN_FILES}
    done = train(seed=2)
    (folder,) = (tmp_path / "earlier").iterdir()
    assert (folder / "checkpoints").is_dir()
    assert {name: (folder / name).read_bytes() for name in RUN_FILES} == kept
    assert str(folder) in done.out
    assert load(tmp_path / "tiny_gpt_best.pt").run_config["seed"] == 2


def test_earlier_runs_of_the_same_second_are_kept(tmp_path):
    for content in (b"first", b"second"):
        (tmp_path / "tiny_gpt_final.pt").write_bytes(content)
        os.utime(tmp_path / "tiny_gpt_final.pt", (1_000_000, 1_000_000))
        archive_earlier_run(tmp_path)
    kept = (tmp_path / "earlier").glob("*/tiny_gpt_final.pt")
    assert {path.read_bytes() for path in kept} == {b"first", b"second"}


def test_next_command_quotes_a_path_with_a_space(train, tmp_path):
    done = train(tmp_path / "my run")
    assert f"tiny-gpt generate --checkpoint '{tmp_path / 'my run' / 'tiny_gpt_best.pt'}' --prompt" in done.out


def test_very_short_text_is_told_what_it_is_good_for(command, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("The lobster said that every one of them had been told. " * 18)
    done = command("tiny-gpt", "train", short, "--recipe", "overnight", *flags(**TINY, out_dir=tmp_path / "out"))
    assert done.code == 0 and "a text of 990 characters is very short: the model will memorize it" in done.out


@pytest.mark.parametrize(
    ("elapsed_s", "advice"),
    [
        (480.0, "More training time would hardly improve this model. More text would"),
        (240.0, "Train it further:\n  tiny-gpt resume runs/text --for 4m\n"),
    ],
)
def test_end_advises_no_more_time_than_the_plan_has_use_for(capsys, elapsed_s, advice):
    """A plan that says that eight minutes suffice is not followed by advice to train overnight."""
    finished = SimpleNamespace(stopped_by=None, best_step=5, best_path="best.pt", elapsed_s=elapsed_s)
    samples = SimpleNamespace(final_text=lambda _: "a sample")
    config = RunConfig(data=DataConfig(("text.txt",)), train=TrainConfig(for_="8m"))
    commands = session.NextCommands.of("tiny-gpt", "runs/text")
    session._print_sample_and_next_commands(finished, SimpleNamespace(saturation_s=480.0), config, commands, samples)
    shown = capsys.readouterr().out
    assert advice in shown and "overnight" not in shown and "8h" not in shown


def test_decoder_is_compiled_before_the_clock_starts(train, monkeypatch):
    order = []
    monkeypatch.setattr(consumers, "must_compile", lambda model: not order)
    monkeypatch.setattr(consumers, "compile_engine", lambda model, precision: order.append("compiled"))
    make_state = start.TrainState
    monkeypatch.setattr(start, "TrainState", lambda *args: order.append("clock") or make_state(*args))
    assert train().out.startswith("compiling the decoder for this CPU")
    assert order == ["compiled", "clock"]


@pytest.mark.parametrize("consumer", [Console, consumers.MetricsFile])
def test_failing_consumer_does_not_stop_training(train, tmp_path, monkeypatch, consumer):
    consume = consumer.consume

    def fail_at_first_evaluation(self, event):
        if isinstance(event, Evaluated):
            raise OSError("gone")
        consume(self, event)

    monkeypatch.setattr(consumer, "consume", fail_at_first_evaluation)
    done = train()
    assert done.code == 0 and files_of(tmp_path) == RUN_FILES
    assert f"{consumer.__name__} failed and is no longer used: gone" in done.err


def test_unwritable_metrics_do_not_stop_training(train, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    done = train()
    assert done.code == 0 and "MetricsFile failed" in done.err
    assert load(tmp_path / "tiny_gpt_final.pt").progress.step == 12


def test_skipped_files_are_reported(command, text, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(text.read_bytes())
    (tmp_path / "texts" / "b.png").write_bytes(b"\x89PNG\0")
    done = command(
        "tiny-gpt", "train", tmp_path / "texts", "--recipe", "overnight", *flags(**TINY, out_dir=tmp_path / "out")
    )
    assert done.code == 0 and "skipped 1: is a picture (such as b.png)" in done.out


@pytest.fixture
def send(monkeypatch):
    """`send((number, when), ...)`: this process gets signal `number` at the first event for which `when` is true."""
    deliver = consumers.deliver

    def arm(*plan):
        waiting = list(plan)

        def deliver_and_send(event, consumers):
            deliver(event, consumers)
            if waiting and waiting[0][1](event):
                os.kill(os.getpid(), waiting.pop(0)[0])

        monkeypatch.setattr(consumers, "deliver", deliver_and_send)

    return arm


def at_step(number):
    return lambda event: isinstance(event, StepDone) and event.step == number


def assert_intact(folder, *expected):
    assert files_of(folder) == sorted(expected)
    for name in expected:
        if name.endswith(".pt"):
            load(folder / name)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_finishes_the_step_and_saves(train, send, tmp_path, number, code):
    send((number, at_step(2)))
    done = train(iters_per_epoch=10_000)
    assert done.code == code
    assert_intact(tmp_path, *RUN_FILES)
    assert [row["step"] for row in rows(tmp_path)] == [3]
    for name in ("tiny_gpt_best.pt", "tiny_gpt_final.pt"):
        assert load(tmp_path / name).progress.step == 3
    assert "evaluating and saving" in done.out
    assert f"tiny-gpt generate --checkpoint {tmp_path / 'tiny_gpt_best.pt'} --prompt" in done.out
    assert "A sample" not in done.out


def test_losses_before_a_signal_are_unaffected(train, send, trained, tmp_path):
    send((signal.SIGINT, at_step(8)))
    assert train().code == 130
    assert losses(tmp_path) == losses(trained[0])[:3]


def test_second_signal_stops_at_once(train, send, tmp_path):
    send((signal.SIGINT, at_step(8)), (signal.SIGINT, lambda event: isinstance(event, Stopping)))
    done = train()
    assert done.code == 130 and "Everything already saved is intact" in done.err
    assert_intact(tmp_path, "config.json", "metrics.jsonl", "status.json", "tiny_gpt_best.pt", "train.log")
    assert load(tmp_path / "tiny_gpt_best.pt").progress.step == 6


def test_second_signal_while_saving_keeps_the_old_file(train, send, tmp_path, monkeypatch):
    save = torch.save

    def save_half(content, file):
        if content["progress"]["step"] > 6:
            file.write(b"half of a model")
            os.kill(os.getpid(), signal.SIGINT)
        save(content, file)

    monkeypatch.setattr(model_file.torch, "save", save_half)
    send((signal.SIGINT, at_step(8)))
    assert train().code == 130
    assert_intact(tmp_path, "config.json", "metrics.jsonl", "status.json", "tiny_gpt_best.pt", "train.log")
    assert load(tmp_path / "tiny_gpt_best.pt").progress.step == 6


def test_ctrl_c_while_sampling_loses_nothing(train, tmp_path, monkeypatch):
    monkeypatch.setattr(session.Samples, "final_text", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert train().code == 130
    assert_intact(tmp_path, *RUN_FILES)


def test_ctrl_c_before_training_prints_no_traceback(train, tmp_path, monkeypatch):
    monkeypatch.setattr(consumers, "run", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    done = train()
    assert done.code == 130 and "Traceback" not in done.err


def test_signal_handlers_are_restored(train, send):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    send((signal.SIGINT, lambda event: isinstance(event, Saved)))
    train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
