"""`tiny_gpt.load` in a Python program, against the command line, brute force and torch."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny_gpt
from tiny_gpt.cli import main as cli
from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import save_model
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.tokenizer.byte_char import CharTokenizer, to_utf8

CONFIG = ModelConfig("qwen3", n_layer=2, n_head=2, d_model=16, d_ff=32, block_size=12)
TEXT = "né dog and cat\n" * 5


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model file with random weights."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer("é")
    model = GPT(CONFIG, tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, model, tokenizer, RunConfig(model=CONFIG), Progress(1, 1, 1.0, 1.0, 1.0))
    return path


@pytest.fixture
def model(path):
    return tiny_gpt.load(path, device="cpu")


def test_generate_is_what_the_command_line_writes(model, path, capsys):
    text = model.generate("né", max_tokens=40, seed=3, temperature=1.1, top_k=50, stop=("q",))
    how = "--max-tokens 40 --seed 3 --temperature 1.1 --top-k 50 --stop q --num-samples 1 --no-stream --json".split()
    assert cli.main(["generate", str(path), "--prompt", "né", *how]) == 0
    assert f'"text": {json.dumps(text)}' in capsys.readouterr().out


def test_stream_gives_generates_text_in_pieces_and_samples_give_each_seeds(model):
    pieces = list(model.stream("né", max_tokens=30, seed=3))
    assert len(pieces) > 5 and "".join(pieces) == model.generate("né", max_tokens=30, seed=3)
    assert model.samples("né", 4, max_tokens=30, seed=2)[1] == "".join(pieces)


def test_two_streams_at_once_do_not_disturb_each_other(model):
    alone = model.generate("a", max_tokens=20, seed=1), model.generate("b", max_tokens=20, seed=2)
    together = list(
        zip(model.stream("a", max_tokens=20, seed=1), model.stream("b", max_tokens=20, seed=2), strict=False)
    )
    assert alone[0].startswith("".join(piece for piece, _ in together))
    assert alone[1].startswith("".join(piece for _, piece in together))


def test_without_a_seed_texts_differ(model):
    assert len({model.generate("a", max_tokens=30) for _ in range(3)}) == 3


def test_logprobs_are_the_models_in_sequences(model):
    ids = torch.from_numpy(model.loaded.tokenizer.encode(TEXT).astype(np.int64))
    expected = []
    for start in range(0, len(ids) - 1, CONFIG.block_size):
        sequence = ids[start : start + CONFIG.block_size + 1]
        with torch.no_grad():
            scores = F.log_softmax(model.loaded.model(sequence[None, :-1])[0].double(), -1)
        expected += scores.gather(1, sequence[1:, None])[:, 0].tolist()
    scored = model.logprobs(TEXT)
    assert "".join(score.token for score in scored) == TEXT[1:]
    np.testing.assert_allclose([score.logprob for score in scored], expected, atol=1e-5)
    n_ids = len(ids)
    nats = -math.fsum(expected) / (n_ids - 1) * n_ids
    assert model.bits_per_byte(TEXT) == pytest.approx(nats / math.log(2) / len(to_utf8(TEXT)), rel=1e-6)


def test_bits_per_byte_is_the_figure_of_eval(model, path, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert cli.main(["eval", str(path), str(tmp_path / "text.txt"), "--json"]) == 0
    figure = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert model.bits_per_byte(TEXT) == pytest.approx(figure, rel=1e-6)


@pytest.mark.parametrize("text", ["", "a"])
def test_of_less_than_two_tokens_nothing_can_be_scored(model, text):
    assert model.logprobs(text) == [] and math.isnan(model.bits_per_byte(text))


def test_what_is_no_model_or_no_setting_is_told(model, tmp_path):
    with pytest.raises(BadInputError, match="no model "):
        tiny_gpt.load(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="--temperature -1"):
        model.generate("a", temperature=-1)
    with pytest.raises(TypeError, match="warmth"):
        model.generate("a", warmth=2)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tiny_gpt.nothing  # noqa: B018


def test_a_small_model_on_a_processor_writes_without_torch(path):
    """Which takes longer to load than the text to write."""
    program = f"""if True:
        import sys
        from tiny_gpt.cli import main as cli
        code = cli.main(["generate", {str(path)!r}, "--max-tokens", "5", "--seed", "1"])
        assert "torch" not in sys.modules
        sys.exit(code)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("The") == 3


def test_importing_the_package_loads_neither_torch_nor_numba(path):
    program = f"""if True:
        import sys, tiny_gpt
        assert not {{"torch", "numba", "numpy"}} & set(sys.modules)
        print(tiny_gpt.load({str(path)!r}).generate("a", max_tokens=5, seed=1))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(path).parent)
    assert (done.returncode, done.stderr) == (0, "")
