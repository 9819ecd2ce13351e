"""`tiny-gpt serve` as a process: what it prints, answers, refuses, and how it stops."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import requests

from tests.inference.support import random_model
from tests.serve.support import random_engine, written_alone
from tiny_gpt.model_io.model_file import LoadedModel, save_loaded
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.tokenizer.base import ByteTokenizer


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "book" / "tiny_gpt_best.pt"
    path.parent.mkdir()
    model = random_model("gpt2", 32)
    save_loaded(path, LoadedModel(model, ByteTokenizer(), Progress(1, 1, 1.0, 1.0, 1.0), {}))
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_server_answers_and_finishes_what_runs_when_it_is_stopped(model_file):
    command = [sys.executable, "-m", "tiny_gpt", "serve", str(model_file.parent), "--max-request-tokens", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first.startswith("book at http://127.0.0.1:")
        url = first.split()[2].removesuffix("/v1")
        assert second == f"Playground: {url}/\n"
        settings = dict(prompt="Once", seed=1, max_tokens=20)
        answer = requests.post(f"{url}/v1/completions", json=settings).json()
        assert answer["choices"][0]["text"] == written_alone(random_engine("gpt2"), "Once", 1, max_tokens=20)
        page = requests.get(url)
        assert page.status_code == 200 and "<html" in page.text and "script-src 'self'" in str(page.headers)
        assert requests.get(f"{url}/play/model").status_code == 200
        assert requests.get(f"{url}/nothing").json()["error"]["code"] == "not-found"
        # More tokens than are written before the signal arrives.
        settings = dict(prompt="Once", max_tokens=20_000, stream=True)
        stream = requests.post(f"{url}/v1/completions", json=settings, stream=True)
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.2)
        *_, last, end = lines
        assert end == b"data: [DONE]" and json.loads(last[6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0
        assert process.stderr.read() == "(finishing 1 texts; Ctrl+C again stops at once)\n"


@pytest.mark.parametrize(
    ("flags", "code", "values"),
    [
        (["--host", "0.0.0.0"], "no-api-key", ["0.0.0.0", "--api-key"]),
        (["--api-key", "short"], "api-key-unusable", ["--api-key"]),
        (["--max-batch", "0"], "value-not-positive", ["--max-batch"]),
        (["--host", "no.such.host.invalid", "--api-key", "sesame-open-12"], "host-unknown", ["no.such.host.invalid"]),
    ],
)
def test_impossible_settings_are_explained(command, model_file, flags, code, values):
    command("tiny-gpt", "serve", model_file, *flags).assert_error(2, code, *values)


def test_a_missing_model_is_reported(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command("tiny-gpt", "serve", "nothing").assert_error(3, "no-model-yet")
