"""`tiny-gpt eval`."""

import json

import pytest
import torch

from tests.cli.support import TINY, flags, load


def test_eval_scores_every_token_once(command, text, tmp_path):
    tiny = TINY | dict(epochs=1, out_dir=tmp_path)
    assert command("tiny-gpt", "train", text, "--tokenizer", "bpe", *flags(**tiny)).code == 0
    model = tmp_path / "tiny_gpt_best.pt"
    scores = json.loads(command("tiny-gpt", "eval", model, text, "--json").out)
    loaded = load(model)
    ids = torch.from_numpy(loaded.tokenizer.encode(text.read_text()).astype(int))
    sequences = [ids[start : start + 17] for start in range(0, len(ids) - 1, 16)]
    with torch.no_grad():
        losses = torch.cat([loaded.model.losses(b[None, :-1], b[None, 1:]).flatten() for b in sequences])
    assert scores["n_tokens"] == len(ids) == len(losses) + 1 and scores["n_bytes"] == text.stat().st_size
    assert scores["nats_per_token"] == pytest.approx(losses.mean().item(), abs=1e-5)
    nats = scores["nats_per_token"] * len(ids)
    assert scores["bits_per_byte"] == pytest.approx(nats / scores["n_bytes"] / 0.6931472)
    assert scores["nats_per_character"] == pytest.approx(nats / scores["n_characters"])
    assert "bits per byte" in command("tiny-gpt", "eval", model, text).out


@pytest.mark.parametrize(
    ("args", "exit_code", "code", "value"),
    [
        (["nosuch.pt", "a.txt"], 3, "no-model-yet", "nosuch.pt"),
        (["nosuch.pt"], 2, "text-not-named", "tiny-gpt eval MODEL"),
    ],
)
def test_eval_errors_name_the_fault(command, tmp_path, monkeypatch, args, exit_code, code, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    command("tiny-gpt", "eval", *args).assert_error(exit_code, code, value)


def test_eval_needs_two_tokens(command, trained, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    done = command("tiny-gpt", "eval", trained[0], tmp_path / "a.txt")
    done.assert_error(3, "text-too-short-to-score", "a.txt")
