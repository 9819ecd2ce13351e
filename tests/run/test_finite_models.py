"""A model of NaN or infinity is refused wherever a model is read."""

import json
import math
import shutil

import pytest
import torch

from tests.run.support import TEXT
from tiny_gpt import load
from tiny_gpt.cli.main import main
from tiny_gpt.config import BEST_FILE
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import load_model, save_loaded
from tiny_gpt.run.run import run

CPU = torch.device("cpu")


@pytest.fixture
def spoiled(animals, tmp_path):
    """`spoiled(value)`: the run with one number of one weight replaced; the model's files and an exported folder."""

    def spoil(value, index=0):
        loaded = load_model(animals / BEST_FILE, CPU)
        weight = list(loaded.model.state_dict().values())[index]
        weight.view(-1)[-1] = value
        save_loaded(tmp_path / BEST_FILE, loaded)
        return tmp_path

    return spoil


@pytest.mark.parametrize("index", [0, -1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_reader_takes_it(spoiled, value, index):
    path = spoiled(value, index)
    for read in (lambda: load_model(path / BEST_FILE, CPU), lambda: load(path)):
        with pytest.raises(BadInputError) as error:
            read()
        assert error.value.code == "weights-not-finite" and "1 of" in str(error.value)


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "MODEL", "text.txt"],
        ["eval", "MODEL", "text.txt", "--json"],
        ["generate", "MODEL", "--seed", "1"],
        ["generate", "MODEL", "--json"],
        ["export", "MODEL", "--to", "hf"],
        ["export", "MODEL", "--to", "safetensors"],
    ],
)
def test_no_command_takes_it(spoiled, command, capsys, monkeypatch):
    folder = spoiled(math.nan)
    monkeypatch.chdir(folder)
    (folder / "text.txt").write_text(TEXT)
    assert main([str(folder) if word == "MODEL" else word for word in command]) == 3
    captured = capsys.readouterr()
    assert "NaN or infinite" in captured.err and captured.out.count("NaN") <= 1
    if "--json" in command:
        assert json.loads(captured.out)["error"]["code"] == "weights-not-finite"


def test_no_training_starts_from_it(spoiled, initial_config):
    shutil.copy(spoiled(math.nan) / BEST_FILE, initial_config.train.start_from)
    with pytest.raises(BadInputError) as error:
        list(run(initial_config))
    assert error.value.code == "weights-not-finite"


def test_weights_too_large_to_compute_with_have_no_score(animals, tmp_path, capsys):
    loaded = load_model(animals / BEST_FILE, CPU)
    loaded.model.state_dict()["head.weight"].mul_(1e30)
    save_loaded(tmp_path / "large.pt", loaded)
    (tmp_path / "text.txt").write_text(TEXT)
    assert main(["eval", str(tmp_path / "large.pt"), str(tmp_path / "text.txt"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "loss-not-finite"


def test_a_lora_folder_is_named_for_what_it_is(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert main(["import", str(tmp_path)]) == 3
    assert "LoRA" in capsys.readouterr().err
