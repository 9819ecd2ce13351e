"""`tiny-gpt generate` and inference.py."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import flags
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.ui.terminal import printable


@pytest.fixture
def inference(command, trained):
    """`inference(...)`: inference.py with the trained model."""

    def run(*args):
        return command("inference.py", "--checkpoint", trained[0] / "tiny_gpt_best.pt", "--device", "cpu", *args)

    return run


def test_default_is_three_samples_with_prompt(trained, command, monkeypatch):
    monkeypatch.chdir(trained[0])
    done = command("inference.py", "--max-tokens", 5)
    assert done.code == 0
    assert re.findall(r"--- (\d) of 3 ---\nThe", done.out) == ["1", "2", "3"]
    seed = re.fullmatch(r"\(--seed (\d+) generates the same text again\)\n", done.err).group(1)
    again = command("inference.py", "--max-tokens", 5, "--seed", seed)
    assert (again.out, again.err) == (done.out, "")
    assert command("tiny-gpt", "generate", "--max-tokens", 5, "--seed", seed).out == done.out


def test_inference_script_uses_the_newest_run_where_train_py_has_left_no_model(trained, command, tmp_path, monkeypatch):
    """As after `make train`, whose model is in runs/."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "tinyshakespeare"
    run.mkdir(parents=True)
    (run / "tiny_gpt_best.pt").write_bytes((trained[0] / "tiny_gpt_best.pt").read_bytes())
    done = command("inference.py", "--max-tokens", 5, "--seed", 1)
    assert done.code == 0 and "using runs/tinyshakespeare/tiny_gpt_best.pt" in done.err
    monkeypatch.chdir(trained[0])
    assert command("inference.py", "--max-tokens", 5, "--seed", 1).out == done.out
    command("inference.py", "--checkpoint", "other.pt").assert_error(3, "no-model-yet", "other.pt")


def test_seed_determines_the_text(inference):
    first, again, other = (inference("--seed", seed).out for seed in (1, 1, 2))
    assert first == again != other


def test_temperature_zero_is_greedy(inference):
    texts = [inference("--temperature", 0, "--num-samples", 1, "--max-tokens", 40).out for _ in range(2)]
    texts.append(inference("--top-k", 1, "--num-samples", 1, "--max-tokens", 40).out)
    texts.append(inference("--top-p", 1e-9, "--num-samples", 1, "--max-tokens", 40).out)
    assert len(set(texts)) == 1


@pytest.mark.parametrize("prompt", ["", "In the year", "né 日本 🦉", "x" * 500, "\n", "a\tb\n"])
def test_any_prompt_is_continued(inference, prompt):
    done = inference("--prompt", prompt, "--num-samples", 1, "--max-tokens", 30, "--seed", 1)
    assert done.code == 0 and done.out.startswith(prompt) and len(done.out) > len(prompt) + 10


def test_control_characters_are_not_printed(inference):
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
def test_invalid_value_names_its_flag(inference, name, value):
    done = inference(name, value)
    assert done.code == 2 and name in done.err and value in done.err
    assert done.out == "" and "Traceback" not in done.err


def test_model_is_found_by_run_folder_file_or_age(trained, command, monkeypatch):
    monkeypatch.chdir(trained[0].parent)
    folder = trained[0].name
    Path("runs").mkdir(exist_ok=True)
    Path("runs/mine").symlink_to(trained[0])
    how = ("--seed", 1, "--max-tokens", 9, "--num-samples", 1)
    names = ["mine", folder, f"{folder}/tiny_gpt_best.pt", "runs/mine", ""]
    texts = [command("tiny-gpt", "generate", *([name] if name else []), *how).out for name in names]
    assert len(set(texts)) == 1 and texts[0].startswith("The")
    Path("runs/mine").unlink()


def test_prompt_from_file_and_standard_input(inference, tmp_path, monkeypatch):
    how = ("--seed", 1, "--num-samples", 1, "--max-tokens", 9)
    expected = inference("--prompt", "né\ndog", *how)
    (tmp_path / "prompt.txt").write_bytes("\ufeffné\ndog\r\n".encode())
    assert inference("--prompt-file", tmp_path / "prompt.txt", *how) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("né\ndog\n".encode())))
    assert inference("--prompt-file", "-", *how) == expected


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), (b"caf\xe9", "is not UTF-8 (byte 3); save it as UTF-8")]
)
def test_unreadable_prompt_file_is_an_error(inference, tmp_path, content, words):
    if content is not None:
        (tmp_path / "prompt.txt").write_bytes(content)
    done = inference("--prompt-file", tmp_path / "prompt.txt")
    assert done.code == 3 and words in done.err and done.err.count("\n") == 1 and done.out == ""


def test_prompt_of_10_mb_shows_its_end(inference, tmp_path):
    (tmp_path / "prompt.txt").write_text("the cat sat on a mat. " * 480_000)
    how = ("--seed", 1, "--num-samples", 1, "--max-tokens", 9)
    done = inference("--prompt-file", tmp_path / "prompt.txt", *how)
    assert done.code == 0 and done.out.startswith("…") and len(done.out) < 2100
    end = inference("--prompt", ("the cat sat on a mat. " * 9), *how)
    assert done.out[-12:] == end.out[-12:]


def test_json_matches_the_printed_text(inference):
    how = ("--seed", 5, "--max-tokens", 40, "--stop", "a", "zz", "--num-samples", 3)
    shown, lines = inference(*how), [json.loads(line) for line in inference("--json", *how).out.splitlines()]
    assert [line["seed"] for line in lines] == [5, 6, 7]
    for line in lines:
        assert line["prompt"] == "The" and "a" not in line["text"]
        assert line["prompt"] + printable(line["text"]) in shown.out
        assert 1 <= line["n_tokens"] <= 40 and line["stopped"] == (line["n_tokens"] < 40)


def test_prompt_is_printed_once_if_nothing_follows(inference):
    how = ("--seed", 5, "--max-tokens", 9, "--num-samples", 2)
    first = json.loads(inference("--json", *how).out.splitlines()[0])["text"][0]
    done = inference(*how, "--stop", first)
    assert done.out.startswith("--- 1 of 2 ---\nThe\n\n--- 2 of 2 ---\nThe") and done.out.count("The") == 2


def test_no_stream_prints_the_same(inference):
    assert inference("--seed", 5).out == inference("--seed", 5, "--no-stream").out


def test_more_samples_than_one_batch(inference):
    how = ("--seed", 1, "--max-tokens", 5)
    many = inference("--num-samples", 40, *how).out
    assert re.findall(r"--- (\d+) of 40 ---", many) == [str(n + 1) for n in range(40)]
    alone = inference("--num-samples", 1, "--max-tokens", 5, "--seed", 36).out
    assert f"--- 36 of 40 ---\n{alone}\n" in many


def test_interactive_continues_each_line(inference, monkeypatch):
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


def test_closed_pipe_is_no_error(trained):
    """As in `python3 inference.py | head -c 10`."""
    writing = [sys.executable, Path(ROOT) / "inference.py", *flags(max_tokens=3000, num_samples=100, device="cpu")]
    with subprocess.Popen(
        [*writing, "--seed", "1"], cwd=trained[0], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, b"")


def test_torch_writes_where_compiling_is_switched_off(trained, inference, monkeypatch):
    """Numba then runs kernels as Python, which they are not. Greedy text is the same."""
    args = ["--max-tokens", 5, "--temperature", 0, "--num-samples", 1]
    compiled = inference(*args)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    done = inference(*args)
    assert (done.code, done.out) == (0, compiled.out)
