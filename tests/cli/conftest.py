"""Commands run inside the test's process, on a small text and a tiny model."""

import contextlib
import io
import random
import sys

import pytest

from tests.cli.support import TINY, Done, flags
from tiny_gpt.cli import launch, process
from tiny_gpt.cli.generate import inference_script
from tiny_gpt.cli.main import main
from tiny_gpt.cli.train import train_script

PROGRAMS = {
    "tiny-gpt": main,
    "train.py": lambda: train_script({"out_dir": "."}),
    "inference.py": inference_script,
}


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
    """`command("tiny-gpt", ...)`, and so train.py and inference.py: returns Done."""
    found = []
    to_known_error = process.to_known_error
    monkeypatch.setattr(process, "to_known_error", lambda failure: found.append(to_known_error(failure)) or found[-1])
    monkeypatch.setattr(launch, "is_watched", lambda: True)

    def run(program, *args):
        found.clear()
        monkeypatch.setattr(sys, "argv", [program, *map(str, args)])
        code = PROGRAMS[program]()
        return Done(code, *capsys.readouterr(), found[-1].code if found else "")

    return run


@pytest.fixture
def train(command, text, tmp_path):
    """`train(out_dir, **settings)`: a tiny training."""

    def run(out_dir=tmp_path, **settings):
        settings = TINY | {"out_dir": out_dir} | settings
        return command("tiny-gpt", "train", text, "--recipe", "overnight", *flags(**settings))

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
