"""The commands as a person meets them: the guide's own from training to text, bad input, terminals, Ctrl+C."""

import contextlib
import io
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.cli import launch
from tiny_gpt.cli import session as train_command
from tiny_gpt.cli.generate import inference_script
from tiny_gpt.cli.main import main
from tiny_gpt.cli.train import train_script
from tiny_gpt.model_io import model_file
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import start
from tiny_gpt.run.events import Evaluated, Saved, StepDone, Stopping
from tiny_gpt.run.output_folder import archive_earlier_run
from tiny_gpt.ui.console import Console
from tiny_gpt.ui.terminal import printable

TINY = dict(n_layer=1, n_head=2, d_model=16, d_ff=32, block_size=16, batch_size=4, epochs=2, iters_per_epoch=6)
TINY |= dict(eval_interval=3, device="cpu", precision="fp32", backend="eager", watchdog=False, keep_awake=False)
LOSS = r"\d+\.\d{4}"
DETAILS = rf"train_loss={LOSS}, val_loss={LOSS}, batch_loss={LOSS}, lr=\d\.\de-\d\d"
SPEED = r"\d+\.\d\d(it/s|s/it)"
OUR_FILES = ["config.json", "metrics.jsonl", "tiny_gpt_best.pt", "tiny_gpt_final.pt", "train.log"]

needs_terminal = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals of this kind")


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def flags(**settings):
    """n_layer=1 -> --n-layer 1, watchdog=False -> --no-watchdog."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        words += [f"--no-{flag}"] if value is False else [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    return words


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    """All that a run's seed decides."""
    decided = ("step", "epoch", "train_loss", "val_loss", "batch_loss", "lr", "grad_norm")
    return [{name: row[name] for name in decided} for row in rows(folder)]


def names(folder):
    """All that a run left apart from its checkpoints, its samples and its lock."""
    found = [path.relative_to(folder) for path in folder.rglob("*")]
    assert not any(path.name.endswith((".part", ".old")) for path in found)
    return sorted(path.as_posix() for path in found if path.parts[0] not in ("checkpoints", "samples", ".lock"))


def load(path):
    return load_model(path, torch.device("cpu"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """About 20 kB of sentences."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "said", "hello", "to", "every", "dog", "in", "town"]
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(words, k=9)) + "." for _ in range(480)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(sentences), encoding="utf-8")
    return path


@pytest.fixture
def command(capsys, monkeypatch):
    """`command("tiny-gpt", ...)`, and so train.py and inference.py, inside this process."""

    monkeypatch.setattr(launch, "is_watched", lambda: True)

    programs = {
        "tiny-gpt": main,
        "train.py": lambda: train_script({"out_dir": "."}),
        "inference.py": inference_script,
    }

    def run(program, *args):
        monkeypatch.setattr(sys, "argv", [program, *map(str, args)])
        return Done(programs[program](), *capsys.readouterr())

    return run


@pytest.fixture
def train(command, text, tmp_path):
    """`train(out_dir, **settings)`: a tiny training."""

    def run(out_dir=tmp_path, **settings):
        return command(
            "tiny-gpt", "train", text, "--recipe", "overnight", *flags(**(TINY | {"out_dir": out_dir} | settings))
        )

    return run


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """The folder of a finished run of train.py, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", "--data", str(text), *flags(**TINY)])
        assert train_script({"out_dir": "."}) == 0
    return folder, out.getvalue()


@pytest.fixture
def inference(command, trained):
    """`inference(...)`: inference.py with the trained model."""

    def run(*args):
        return command("inference.py", "--checkpoint", trained[0] / "tiny_gpt_best.pt", "--device", "cpu", *args)

    return run


class TestTraining:
    def test_prints_the_guides_lines(self, trained):
        # on a busy machine it may also be told that training has become slower
        lines = [line for line in trained[1].splitlines() if not re.match(r"step \d+: ", line)]
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
        assert lines[-1] == 'Generate text: python3 inference.py --prompt "The" --temperature 0.8'

    def test_writes_four_files_and_nothing_else(self, trained):
        assert names(trained[0]) == OUR_FILES

    def test_metrics_hold_one_line_for_each_evaluation(self, trained):
        found = rows(trained[0])
        assert [(row["step"], row["epoch"]) for row in found] == [(3, 1), (6, 1), (9, 2), (12, 2)]
        for row in found:
            assert row.keys() >= {"train_loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "elapsed_s"}
            assert all(value > 0 for value in row.values())

    def test_model_files_hold_what_generating_takes(self, trained):
        for name in ("tiny_gpt_best.pt", "tiny_gpt_final.pt"):
            content = torch.load(trained[0] / name, weights_only=True)
            assert content.keys() >= {"format_version", "weights", "model_config", "run_config", "tokenizer"}
            assert content["progress"]["step"] == 12 and content["progress"]["epoch"] == 2
            last = rows(trained[0])[-1]
            assert content["progress"]["val_loss"] == last["val_loss"]
            assert content["progress"]["train_loss"] == last["train_loss"]

    def test_the_best_file_stays_that_of_the_lowest_validation_loss(self, train, tmp_path, monkeypatch):
        """Also where the loss rises again, which a rate of 2 makes sure of."""
        train(learning_rate=2.0, warmup_steps=0, epochs=4)
        ends = [row for row in rows(tmp_path) if row["step"] % TINY["iters_per_epoch"] == 0]
        lowest = min(ends, key=lambda row: row["val_loss"])
        assert load(tmp_path / "tiny_gpt_best.pt").progress.val_loss == lowest["val_loss"]
        assert load(tmp_path / "tiny_gpt_final.pt").progress.val_loss == ends[-1]["val_loss"]

    def test_a_saved_config_run_again_gives_the_same_losses_to_the_last_bit(self, trained, command, tmp_path):
        config = trained[0] / "config.json"
        assert json.loads(config.read_text())["n_layer"] == TINY["n_layer"]
        for program, more in (("train.py", []), ("tiny-gpt", ["train"])):
            folder = tmp_path / program
            assert command(program, *more, "--config", config, "--out-dir", folder).code == 0
            assert losses(folder) == losses(trained[0])
        assert command("train.py", "--config", config, "--out-dir", tmp_path, "--seed", 7).code == 0
        assert losses(tmp_path) != losses(trained[0])

    def test_settings_of_train_py_are_defaults_that_flags_change(self, text, tmp_path, monkeypatch):
        settings = TINY | {"data": [str(text)], "seed": 5}
        monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "6", "--out-dir", str(tmp_path)])
        assert train_script(settings) == 0
        saved = json.loads((tmp_path / "config.json").read_text())
        assert saved["seed"] == 6 and saved["n_layer"] == 1 and saved["data"] == [str(text)]

    def test_an_earlier_run_in_the_same_folder_is_kept(self, train, tmp_path):
        train()
        kept = {name: (tmp_path / name).read_bytes() for name in OUR_FILES}
        done = train(seed=2)
        (folder,) = (tmp_path / "earlier").iterdir()
        assert (folder / "checkpoints").is_dir()
        assert {name: (folder / name).read_bytes() for name in OUR_FILES} == kept
        assert str(folder) in done.out
        assert load(tmp_path / "tiny_gpt_best.pt").run_config["seed"] == 2

    def test_runs_of_the_same_second_and_a_lone_final_file_are_kept_too(self, tmp_path):
        for content in (b"first", b"second"):
            (tmp_path / "tiny_gpt_final.pt").write_bytes(content)
            os.utime(tmp_path / "tiny_gpt_final.pt", (1_000_000, 1_000_000))
            archive_earlier_run(tmp_path)
        kept = (tmp_path / "earlier").glob("*/tiny_gpt_final.pt")
        assert {path.read_bytes() for path in kept} == {b"first", b"second"}

    def test_says_how_to_generate_from_a_folder_with_a_space(self, train, tmp_path):
        done = train(tmp_path / "my run")
        assert f"tiny-gpt generate --checkpoint '{tmp_path / 'my run' / 'tiny_gpt_best.pt'}' --prompt" in done.out

    def test_what_takes_a_while_at_the_first_start_is_done_before_the_clock_runs(self, train, monkeypatch):
        order = []
        monkeypatch.setattr(train_command, "must_compile", lambda model: not order)
        monkeypatch.setattr(train_command, "compile_engine", lambda model, precision: order.append("compiled"))
        make_state = start.TrainState
        monkeypatch.setattr(start, "TrainState", lambda *args: order.append("clock") or make_state(*args))
        assert train().out.startswith("compiling the decoder for this CPU") and order == [
            "compiled",
            "clock",
        ]

    @pytest.mark.parametrize("consumer", [Console, train_command.MetricsFile])
    def test_a_screen_or_file_that_fails_does_not_stop_it(self, train, tmp_path, monkeypatch, consumer):
        consume = consumer.consume

        def fail_at_first_evaluation(self, event):
            if isinstance(event, Evaluated):
                raise OSError("gone")
            consume(self, event)

        monkeypatch.setattr(consumer, "consume", fail_at_first_evaluation)
        done = train()
        assert done.code == 0 and names(tmp_path) == OUR_FILES
        assert f"{consumer.__name__} failed and is no longer used: gone" in done.err

    def test_metrics_that_cannot_be_written_do_not_stop_it(self, train, tmp_path):
        (tmp_path / "metrics.jsonl").mkdir()
        done = train()
        assert done.code == 0 and "MetricsFile failed" in done.err
        assert load(tmp_path / "tiny_gpt_final.pt").progress.step == 12

    def test_a_folder_of_texts_tells_what_it_skipped(self, command, text, tmp_path):
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_bytes(text.read_bytes())
        (tmp_path / "texts" / "b.png").write_bytes(b"\x89PNG\0")
        done = command(
            "tiny-gpt", "train", tmp_path / "texts", "--recipe", "overnight", *flags(**TINY, out_dir=tmp_path / "out")
        )
        assert done.code == 0 and "skipped 1: is not a text file (such as b.png)" in done.out


class TestStopping:
    @pytest.fixture
    def send(self, monkeypatch):
        """`send(number, when)`: this process gets the signal when an event fits."""
        deliver = train_command.deliver

        def arm(*plan):
            waiting = list(plan)

            def deliver_and_send(event, consumers):
                deliver(event, consumers)
                if waiting and waiting[0][1](event):
                    os.kill(os.getpid(), waiting.pop(0)[0])

            monkeypatch.setattr(train_command, "deliver", deliver_and_send)

        return arm

    @staticmethod
    def step(number):
        return lambda event: isinstance(event, StepDone) and event.step == number

    @staticmethod
    def assert_whole(folder, *expected):
        assert names(folder) == sorted(expected)
        for name in expected:
            if name.endswith(".pt"):
                load(folder / name)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_the_first_signal_ends_the_step_evaluates_and_saves(self, train, send, tmp_path, number, code):
        send((number, self.step(2)))
        done = train(iters_per_epoch=10_000)
        assert done.code == code
        self.assert_whole(tmp_path, *OUR_FILES)
        assert [row["step"] for row in rows(tmp_path)] == [3]
        for name in ("tiny_gpt_best.pt", "tiny_gpt_final.pt"):
            assert load(tmp_path / name).progress.step == 3
        assert "step finished; evaluating and saving" in done.out
        assert f"tiny-gpt generate --checkpoint {tmp_path / 'tiny_gpt_best.pt'} --prompt" in done.out
        assert "A sample" not in done.out

    def test_the_losses_up_to_a_signal_are_those_of_a_whole_run(self, train, send, trained, tmp_path):
        send((signal.SIGINT, self.step(8)))
        assert train().code == 130
        assert losses(tmp_path) == losses(trained[0])[:3]

    def test_a_second_signal_ends_at_once(self, train, send, tmp_path):
        send((signal.SIGINT, self.step(8)), (signal.SIGINT, lambda event: isinstance(event, Stopping)))
        done = train()
        assert done.code == 130 and "Everything already saved is intact" in done.err
        self.assert_whole(tmp_path, "config.json", "metrics.jsonl", "tiny_gpt_best.pt", "train.log")
        assert load(tmp_path / "tiny_gpt_best.pt").progress.step == 6

    def test_a_second_signal_in_the_middle_of_saving_leaves_the_older_file(self, train, send, tmp_path, monkeypatch):
        save = torch.save

        def save_half(content, file):
            if content["progress"]["step"] > 6:
                file.write(b"half of a model")
                os.kill(os.getpid(), signal.SIGINT)
            save(content, file)

        monkeypatch.setattr(model_file.torch, "save", save_half)
        send((signal.SIGINT, self.step(8)))
        assert train().code == 130
        self.assert_whole(tmp_path, "config.json", "metrics.jsonl", "tiny_gpt_best.pt", "train.log")
        assert load(tmp_path / "tiny_gpt_best.pt").progress.step == 6

    def test_ctrl_c_while_the_sample_is_written_loses_nothing(self, train, tmp_path, monkeypatch):
        monkeypatch.setattr(train_command, "sample_text", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert train().code == 130
        self.assert_whole(tmp_path, *OUR_FILES)

    def test_ctrl_c_while_the_text_is_read_is_no_traceback(self, train, tmp_path, monkeypatch):
        monkeypatch.setattr(train_command, "run", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        done = train()
        assert done.code == 130 and "Traceback" not in done.err

    def test_the_handlers_of_before_are_back_afterwards(self, train, send):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        send((signal.SIGINT, lambda event: isinstance(event, Saved)))
        train()
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class TestGenerating:
    def test_the_defaults_are_three_texts_after_the_prompt(self, trained, command, monkeypatch):
        monkeypatch.chdir(trained[0])
        done = command("inference.py", "--max-tokens", 5)
        assert done.code == 0
        assert re.findall(r"--- (\d) of 3 ---\nThe", done.out) == ["1", "2", "3"]
        seed = re.fullmatch(r"\(--seed (\d+) generates the same text again\)\n", done.err).group(1)
        again = command("inference.py", "--max-tokens", 5, "--seed", seed)
        assert (again.out, again.err) == (done.out, "")
        assert command("tiny-gpt", "generate", "--max-tokens", 5, "--seed", seed).out == done.out

    def test_the_same_seed_writes_the_same_and_another_another(self, inference):
        first, again, other = (inference("--seed", seed).out for seed in (1, 1, 2))
        assert first == again != other

    def test_temperature_zero_always_takes_the_likeliest(self, inference):
        texts = [inference("--temperature", 0, "--num-samples", 1, "--max-tokens", 40).out for _ in range(2)]
        texts.append(inference("--top-k", 1, "--num-samples", 1, "--max-tokens", 40).out)
        texts.append(inference("--top-p", 1e-9, "--num-samples", 1, "--max-tokens", 40).out)
        assert len(set(texts)) == 1

    @pytest.mark.parametrize("prompt", ["", "In the year", "né 日本 🦉", "x" * 500, "\n", "a\tb\n"])
    def test_any_prompt_is_continued(self, inference, prompt):
        done = inference("--prompt", prompt, "--num-samples", 1, "--max-tokens", 30, "--seed", 1)
        assert done.code == 0 and done.out.startswith(prompt) and len(done.out) > len(prompt) + 10

    def test_what_a_terminal_would_obey_is_not_passed_on(self, inference):
        done = inference("--prompt", "\x1b[31m\r", "--num-samples", 1, "--temperature", 2, "--max-tokens", 300)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", done.out)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("--temperature", "-1"),
            ("--temperature", "nan"),
            ("--temperature", "warm"),
            ("--max-tokens", "0"),
            ("--max-tokens", "many"),
            ("--num-samples", "-3"),
            ("--top-k", "-1"),
            ("--top-k", "1.5"),
            ("--top-p", "0"),
            ("--top-p", "1.5"),
            ("--min-p", "-0.1"),
            ("--repetition-penalty", "0"),
            ("--seed", "-1"),
            ("--seed", str(2**63)),
            ("--nonsense", "1"),
        ],
    )
    def test_a_bad_value_is_told_by_its_flag(self, inference, name, value):
        done = inference(name, value)
        assert done.code == 2 and name in done.err and value in done.err
        assert done.out == "" and "Traceback" not in done.err

    def test_a_model_is_a_run_a_folder_or_a_file_and_else_the_newest(self, trained, command, monkeypatch):
        monkeypatch.chdir(trained[0].parent)
        folder = trained[0].name
        Path("runs").mkdir(exist_ok=True)
        Path("runs/mine").symlink_to(trained[0])
        how = ("--seed", 1, "--max-tokens", 9, "--num-samples", 1)
        names = ["mine", folder, f"{folder}/tiny_gpt_best.pt", "runs/mine", ""]
        texts = [command("tiny-gpt", "generate", *([name] if name else []), *how).out for name in names]
        assert len(set(texts)) == 1 and texts[0].startswith("The")
        Path("runs/mine").unlink()

    def test_the_prompt_comes_from_a_file_or_from_standard_input(self, inference, tmp_path, monkeypatch):
        how = ("--seed", 1, "--num-samples", 1, "--max-tokens", 9)
        expected = inference("--prompt", "né\ndog", *how)
        (tmp_path / "prompt.txt").write_bytes("\ufeffné\ndog\r\n".encode())
        assert inference("--prompt-file", tmp_path / "prompt.txt", *how) == expected
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("né\ndog\n".encode())))
        assert inference("--prompt-file", "-", *how) == expected

    @pytest.mark.parametrize(
        ("content", "words"), [(None, "No such file"), (b"caf\xe9", "is not UTF-8 (byte 3); save it as UTF-8")]
    )
    def test_a_prompt_file_that_cannot_be_read_is_told(self, inference, tmp_path, content, words):
        if content is not None:
            (tmp_path / "prompt.txt").write_bytes(content)
        done = inference("--prompt-file", tmp_path / "prompt.txt")
        assert done.code == 3 and words in done.err and done.err.count("\n") == 1 and done.out == ""

    def test_of_a_prompt_of_10_mb_the_end_is_shown_and_continued(self, inference, tmp_path):
        (tmp_path / "prompt.txt").write_text("the cat sat on a mat. " * 480_000)
        how = ("--seed", 1, "--num-samples", 1, "--max-tokens", 9)
        done = inference("--prompt-file", tmp_path / "prompt.txt", *how)
        assert done.code == 0 and done.out.startswith("…") and len(done.out) < 2100
        end = inference("--prompt", ("the cat sat on a mat. " * 9), *how)
        assert done.out[-12:] == end.out[-12:]

    def test_json_is_a_line_for_each_text_and_the_same_as_the_screen(self, inference):
        how = ("--seed", 5, "--max-tokens", 40, "--stop", "a", "zz", "--num-samples", 3)
        shown, lines = inference(*how), [json.loads(line) for line in inference("--json", *how).out.splitlines()]
        assert [line["seed"] for line in lines] == [5, 6, 7]
        for line in lines:
            assert line["prompt"] == "The" and "a" not in line["text"]
            assert line["prompt"] + printable(line["text"]) in shown.out
            assert 1 <= line["n_tokens"] <= 40 and line["stopped"] == (line["n_tokens"] < 40)

    def test_a_text_that_stops_at_once_is_shown_once(self, inference):
        how = ("--seed", 5, "--max-tokens", 9, "--num-samples", 2)
        first = json.loads(inference("--json", *how).out.splitlines()[0])["text"][0]
        done = inference(*how, "--stop", first)
        assert done.out.startswith("--- 1 of 2 ---\nThe\n\n--- 2 of 2 ---\nThe") and done.out.count("The") == 2

    def test_no_stream_writes_the_same(self, inference):
        assert inference("--seed", 5).out == inference("--seed", 5, "--no-stream").out

    def test_more_texts_than_are_written_at_once(self, inference):
        how = ("--seed", 1, "--max-tokens", 5)
        many = inference("--num-samples", 40, *how).out
        assert re.findall(r"--- (\d+) of 40 ---", many) == [str(n + 1) for n in range(40)]
        alone = inference("--num-samples", 1, "--max-tokens", 5, "--seed", 36).out
        assert f"--- 36 of 40 ---\n{alone}\n" in many

    def test_a_conversation_continues_each_line_and_goes_on_after_an_empty_one(self, inference, monkeypatch):
        def converse(typed, *how):
            monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
            return inference("--interactive", "--max-tokens", 7, "--seed", 1, *how)

        done = converse("The cat\n\nthe dog\n", "--json")
        assert done.code == 0 and done.err == ""
        first, second, third = map(json.loads, done.out.splitlines())
        assert (first["prompt"], second["prompt"]) == ("The cat", "The cat" + first["text"])
        assert third["prompt"] == "the dog"
        shown = "".join(printable(line["prompt"] + line["text"]) + "\n\n" for line in (first, second, third))
        assert converse("The cat\n\nthe dog\n").out == shown == converse("The cat\n\nthe dog", "--no-stream").out

    def test_a_reader_that_has_seen_enough_is_no_error(self, trained):
        """As in `python3 inference.py | head -c 10`."""
        writing = [sys.executable, Path(ROOT) / "inference.py", *flags(max_tokens=3000, num_samples=100, device="cpu")]
        with subprocess.Popen(
            [*writing, "--seed", "1"], cwd=trained[0], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert len(process.stdout.read(10)) == 10
            process.stdout.close()
            assert (process.wait(60), process.stderr.read()) == (0, b"")


class TestBadInput:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch, text):
        """A folder with everything that can be wrong."""
        monkeypatch.chdir(tmp_path)
        Path("empty.txt").touch()
        Path("short.txt").write_text("Too short for a block.")
        Path("latin.txt").write_bytes(b"caf\xe9 " * 100)
        Path("no_text").mkdir()
        Path("no_text", "a.png").write_bytes(b"\x89PNG\0")
        Path("good.txt").write_bytes(text.read_bytes())
        Path("not_json.json").write_text("{")
        Path("odd.json").write_text('{"n_layer": "four"}')

    @pytest.mark.parametrize(
        ("args", "code", "words"),
        [
            ("nosuch.txt", 3, ["no such file or folder: nosuch.txt", "python-docs"]),
            ("empty.txt", 3, ["empty.txt is empty"]),
            ("short.txt", 3, ["the text is too short", "--block-size 1"]),
            ("latin.txt", 3, ["latin.txt is not UTF-8", "byte 3 is 0xe9", "--encoding cp1252"]),
            ("no_text", 3, ["no text found", "a.png is not a text file"]),
            ("good.txt nosuch.txt", 3, ["nosuch.txt"]),
            (
                "good.txt --d-model 250 --n-head 8",
                2,
                ["--d-model 250 is not divisible by --n-head 8", "try --d-model 248"],
            ),
            ("good.txt --out-dir good.txt", 5, ["--out-dir good.txt: cannot write there"]),
            ("good.txt --out-dir good.txt/below", 5, ["--out-dir good.txt/below: cannot write there"]),
            ("good.txt --device nosuch", 2, ["--device nosuch: not on this machine; here are", "cpu"]),
            ("good.txt --device cuda:99", 2, ["--device cuda:99: not on this machine"]),
            ("good.txt --batch-size 6 --grad-accum-steps 4", 2, ["--batch-size 6", "--grad-accum-steps 4"]),
            ("good.txt --n-layer four", 2, ["--n-layer", "four"]),
            ("good.txt --n-leyer 4", 2, ["--n-leyer"]),
            ("good.txt --recipe nonsense", 2, ["--recipe", "nonsense"]),
            ("good.txt --tokenizer nonsense", 2, ["--tokenizer", "nonsense"]),
            ("good.txt --config nosuch.json", 3, ["cannot read the config nosuch.json"]),
            ("good.txt --config not_json.json", 3, ["not_json.json is not a config.json"]),
            ("good.txt --config odd.json", 3, ["odd.json: n_layer must be an integer, but is 'four'"]),
            ("good.txt --config", 2, ["--config"]),
            ("--data", 2, ["--data: name at least one"]),
        ],
    )
    def test_of_training_is_told_in_a_line_or_two(self, command, tmp_path, args, code, words):
        before = names(tmp_path)
        done = command("tiny-gpt", "train", *args.split())
        assert done.code == code
        assert all(word in done.err for word in words), done.err
        assert "Traceback" not in done.err and done.out == "" and names(tmp_path) == before
        by_us = done.err.startswith("error: ") and done.err.count("\n") <= 2
        assert by_us or "tiny-gpt train --help" in done.err

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
    def test_a_folder_where_nobody_may_write_is_told(self, command):
        done = command("tiny-gpt", "train", "good.txt", "--out-dir", "/proc/x")
        assert done.code == 5 and "--out-dir /proc/x: cannot write there" in done.err

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "no model tiny_gpt_best.pt: train one first"),
            (b"", "is not a tiny_gpt model file, or was cut short"),
            (b"The cat sat on the mat.", "is not a tiny_gpt model file, or was cut short"),
        ],
    )
    def test_of_generating_is_told_in_a_line(self, command, content, words):
        if content is not None:
            Path("tiny_gpt_best.pt").write_bytes(content)
        done = command("inference.py")
        assert done.code == 3 and words in done.err and done.err.count("\n") == 1 and done.out == ""

    def test_a_model_file_cut_short_is_told(self, command, trained):
        whole = (trained[0] / "tiny_gpt_best.pt").read_bytes()
        Path("cut.pt").write_bytes(whole[: len(whole) // 2])
        done = command("tiny-gpt", "generate", "--checkpoint", "cut.pt")
        assert done.code == 3 and "cut.pt is not a tiny_gpt model file, or was cut short" in done.err

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            ("a --checkpoint b", "a and --checkpoint b: give only one of them"),
            ("--prompt a --prompt-file good.txt", "--prompt and --prompt-file: give only one of them"),
            ("--interactive --num-samples 2", "leave out --num-samples 2"),
            ("--interactive --prompt-file good.txt", "leave out --prompt-file good.txt"),
        ],
    )
    def test_two_ways_of_naming_one_thing_are_refused(self, command, args, words):
        done = command("tiny-gpt", "generate", *args.split())
        assert done.code == 2 and words in done.err

    def test_help_tells_defaults_only_where_they_are(self, command):
        chosen, fixed = (command("tiny-gpt", "train", "--recipe", name, "--help").out for name in ("auto", "overnight"))
        assert re.search(r"--n-layer INT[^-]*\(default: chosen\)", chosen) and "(default: qwen3)" in chosen
        assert re.search(r"--n-layer INT[^-]*\(default: 4\)", fixed) and "default: chosen" not in fixed

    def test_no_command_and_an_unknown_one_lead_to_help(self, command):
        assert "train" in command("tiny-gpt").out
        done = command("tiny-gpt", "trian")
        assert done.code == 2 and "unknown command 'trian'; see tiny-gpt --help" in done.err

    @pytest.mark.parametrize(
        ("failure", "code", "words"),
        [
            (KeyError("x"), 1, "This is a bug in tiny_gpt; --debug shows where."),
            (MemoryError(), 5, "out of memory: reduce --batch-size"),
            (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), 5, "out of memory"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5, "out of memory"),
            (OSError(28, "No space left on device"), 5, "no space left on the disk"),
        ],
    )
    def test_what_nobody_foresaw_is_told_too_and_traced_on_demand(self, command, monkeypatch, failure, code, words):
        def fail(*_):
            raise failure

        monkeypatch.setattr(train_command, "run", fail)
        done = command("tiny-gpt", "train", "good.txt")
        assert done.code == code and words in done.err and "Traceback" not in done.err
        assert "Traceback" in command("tiny-gpt", "train", "good.txt", "--debug").err


def in_terminal(argv, columns, keys_after=(), **environment):
    """Run `argv` in a pseudo-terminal. `keys_after`: what is typed once a text has appeared. (exit code, output)"""
    import fcntl
    import pty
    import termios

    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, columns))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment
    process = subprocess.Popen(
        argv,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    output, waiting = b"", list(keys_after)
    try:
        while select.select([controller], [], [], 60)[0]:
            try:
                chunk = os.read(controller, 65536)
            except OSError:  # Linux's way of saying that the program is gone
                break
            if not chunk:
                break
            output += chunk
            if waiting and waiting[0][0] in output:
                os.write(controller, waiting.pop(0)[1])
        return process.wait(60), output
    finally:
        process.kill()
        process.wait()
        os.close(controller)


@needs_terminal
def test_train_py_on_a_wide_terminal_shows_the_guides_lines(text, tmp_path):
    argv = [sys.executable, Path(ROOT) / "train.py", "--data", text, *flags(**TINY, out_dir=tmp_path)]
    code, output = in_terminal(argv, columns=140, PYTHONIOENCODING="utf-8")
    lines = [line.strip() for line in re.split(r"[\r\n]+", output.decode())]
    assert code == 0, output.decode()
    best = re.escape(str(tmp_path / "tiny_gpt_best.pt"))
    for form in (
        rf"Epoch 2/2: 100%\|███\| 6/6 \[\d\d:\d\d<00:00, {SPEED}, {DETAILS}\]",
        rf"Epoch 2/2 complete - Train: {LOSS}, Val: {LOSS}",
        rf"✓ Saved best model \(val_loss={LOSS}\) to {best}",
    ):
        assert any(re.fullmatch(form, line) for line in lines), form
    assert names(tmp_path) == OUR_FILES


@needs_terminal
def test_ctrl_c_on_a_narrow_terminal_without_utf8_ends_in_good_order(text, tmp_path):
    endless = TINY | {"iters_per_epoch": 1_000_000}
    argv = [sys.executable, Path(ROOT) / "train.py", "--data", text, *flags(**endless, out_dir=tmp_path)]
    code, output = in_terminal(argv, columns=60, keys_after=[(b"train_loss", b"\x03")], PYTHONIOENCODING="ascii")
    lines = [line.strip() for line in re.split(r"[\r\n]+", output.decode("ascii"))]
    assert code == 130, output
    bars = [line.removesuffix("^C") for line in lines if line.startswith("Epoch")]  # the terminal echoes the key
    assert bars and max(map(len, bars)) <= 60
    assert any(line.startswith("* Saved best model") for line in lines)
    assert any(line.startswith("Generate text: python3 inference.py --checkpoint") for line in lines)
    assert names(tmp_path) == OUR_FILES
    step = rows(tmp_path)[-1]["step"]
    for name in ("tiny_gpt_best.pt", "tiny_gpt_final.pt"):
        assert load(tmp_path / name).progress.step <= step


class TestLookingAtText:
    def test_data_tells_what_a_text_is_like(self, command, text):
        done = command("tiny-gpt", "data", text)
        assert done.code == 0 and done.err == ""
        for words in ("characters", "Latin 100.0%", "held out", "bpe", "times", "suits this text"):
            assert words in done.out
        figures = json.loads(command("tiny-gpt", "data", text, "--json").out)
        assert figures["n_bytes"] == text.stat().st_size and figures["n_documents"] == 1

    def test_data_list_shows_the_known_texts(self, command):
        done = command("tiny-gpt", "data", "list")
        assert done.code == 0 and all(name in done.out for name in ("python-docs", "wikitext-103", "CC BY-SA"))

    def test_eval_scores_a_model_over_the_whole_text(self, command, text, tmp_path):
        tiny = TINY | dict(epochs=1, out_dir=tmp_path)
        assert command("tiny-gpt", "train", text, "--tokenizer", "bpe", *flags(**tiny)).code == 0
        model = tmp_path / "tiny_gpt_best.pt"
        scores = json.loads(command("tiny-gpt", "eval", model, text, "--json").out)
        loaded = load(model)
        ids = torch.from_numpy(loaded.tokenizer.encode(text.read_text()).astype(int))
        blocks = [ids[start : start + 17] for start in range(0, len(ids) - 1, 16)]
        with torch.no_grad():
            losses = torch.cat([loaded.model.losses(b[None, :-1], b[None, 1:]).flatten() for b in blocks])
        assert scores["n_tokens"] == len(ids) == len(losses) + 1 and scores["n_bytes"] == text.stat().st_size
        assert scores["nats_per_token"] == pytest.approx(losses.mean().item(), abs=1e-5)
        nats = scores["nats_per_token"] * len(ids)
        assert scores["bits_per_byte"] == pytest.approx(nats / scores["n_bytes"] / 0.6931472)
        assert scores["nats_per_character"] == pytest.approx(nats / scores["n_characters"])
        assert "bits per byte" in command("tiny-gpt", "eval", model, text).out

    @pytest.mark.parametrize(
        ("args", "code", "words"),
        [
            ("data", 2, "name a text"),
            ("data nosuch.txt", 3, "no such file"),
            ("eval nosuch.pt a.txt", 3, "no model "),
            ("train a.txt --vocab-size 5", 2, "--vocab-size 5"),
            ("train a.txt --tokenizer nosuch.json", 3, "nosuch.json: no such file"),
            ("train a.txt --encoding klingon", 3, "--encoding klingon"),
        ],
    )
    def test_bad_input_is_one_line(self, command, tmp_path, monkeypatch, args, code, words):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text("some text\n" * 100)
        done = command("tiny-gpt", *args.split())
        assert done.code == code and words in done.err and "Traceback" not in done.err
