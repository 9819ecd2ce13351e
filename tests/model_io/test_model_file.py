"""Model files: they hold all that generating takes, run no code, and are whole, absent or refused with a reason."""

import contextlib
import os
import pickle
import zipfile

import pytest
import torch

from tiny_gpt import files
from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.errors import BadInputError, OutOfResourcesError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io import model_file
from tiny_gpt.model_io.model_file import load_model, save_model
from tiny_gpt.model_io.stored_model import FORMAT_VERSION, PARTS, Progress
from tiny_gpt.tokenizer.base import CharTokenizer

CPU = torch.device("cpu")
MODEL = ModelConfig(n_layer=1, n_head=2, d_model=8, d_ff=16, block_size=4)
RUN = RunConfig(model=MODEL)
PROGRESS = Progress(step=12, epoch=3, train_loss=1.25, val_loss=1.5, val_bits_per_byte=2.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(MODEL, vocab_size=257).eval()


@pytest.fixture
def path(tmp_path, model):
    save_model(tmp_path / "model.pt", model, CharTokenizer("é"), RUN, PROGRESS)
    return tmp_path / "model.pt"


def refusal(path):
    with pytest.raises(BadInputError) as caught:
        load_model(path, CPU)
    assert str(path) in str(caught.value)
    return str(caught.value)


def altered(path, **changes):
    """The file with parts of its content replaced, or left out where None."""
    content = torch.load(path, weights_only=True) | changes
    torch.save({name: part for name, part in content.items() if part is not None}, path)
    return path


def test_a_loaded_model_computes_what_the_saved_one_did(path, model):
    loaded = load_model(path, CPU)
    ids = torch.arange(250, 254).view(1, 4)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids), model(ids))
    assert not loaded.model.training and loaded.model.config == MODEL
    assert loaded.tokenizer.to_dict() == CharTokenizer("é").to_dict()
    assert loaded.progress == PROGRESS and RunConfig().with_flat(loaded.run_config, "test") == RUN


def test_the_file_is_plain_types_and_tensors_that_torch_alone_can_read(path):
    content = torch.load(path, weights_only=True)
    assert content["format_version"] == FORMAT_VERSION
    assert content["model_config"]["d_model"] == 8 and content["run_config"]["learning_rate"] == 5e-4
    assert content["tokenizer"] == {"type": "char", "characters": "é"}
    assert content["progress"] == {
        "step": 12,
        "epoch": 3,
        "train_loss": 1.25,
        "val_loss": 1.5,
        "val_bits_per_byte": 2.0,
    }
    assert all(type(weight) is torch.Tensor for weight in content["weights"].values())


def test_a_file_from_before_heads_had_a_width_of_their_own_loads(path, model):
    older = {name: value for name, value in vars(MODEL).items() if name not in ("head_dim", "rope_theta")}
    loaded = load_model(altered(path, model_config=older), CPU)
    assert loaded.model.config == MODEL
    del older["n_layer"]
    assert "expected the model settings" in refusal(altered(path, model_config=older))


def test_a_missing_file_says_how_to_get_one(tmp_path):
    message = refusal(tmp_path / "tiny_gpt_best.pt")
    assert "no model " in message and "train.py" in message and "a model file" in message


def test_a_folder_is_told_apart(tmp_path):
    assert "is a folder without a tiny_gpt_best.pt; name a run's folder or a model file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "model.pt/model.pt"])
def test_a_name_that_no_file_can_have_is_told(path, name):
    refusal(path.parent / name)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(path, part):
    os.truncate(path, int(path.stat().st_size * part))
    assert "cut short" in refusal(path)


def test_a_single_changed_byte_in_the_weights_is_noticed(path):
    whole = path.read_bytes()
    weights = torch.load(path, weights_only=True)["weights"]
    places = [whole.index(weight.numpy().tobytes()) for weight in weights.values() if weight.std() > 0]
    assert len(places) >= 5
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert "damaged" in refusal(path)


def test_changed_bytes_anywhere_never_raise_anything_else(path):
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            load_model(path, CPU)
        except BadInputError:
            continue


def as_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("The cat sat on the mat.\n" * 50),
    "random bytes": lambda path: path.write_bytes(os.urandom(5000)),
    "zip": as_zip,
    "plain pickle": lambda path: path.write_bytes(pickle.dumps({"weights": 1})),
    "torch.save of numbers": lambda path: torch.save([1, 2, 3], path),
    "torch.save of a state dict": lambda path: torch.save(torch.nn.Linear(2, 2).state_dict(), path),
    "torch.save of a whole module": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "torch.save of old": lambda path: torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=list(FOREIGN))
def test_a_foreign_file_is_refused(tmp_path, write):
    write(tmp_path / "foreign.pt")
    message = refusal(tmp_path / "foreign.pt")
    assert "is not a tiny_gpt model file" in message or "was not written by tiny_gpt" in message


class Harmful:
    """Touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("write", [torch.save, lambda harmful, path: path.write_bytes(pickle.dumps(harmful))])
def test_code_in_a_file_does_not_run(tmp_path, write):
    write(Harmful(tmp_path / "marker"), tmp_path / "harmful.pt")
    refusal(tmp_path / "harmful.pt")
    assert not (tmp_path / "marker").exists()
    with contextlib.suppress(RuntimeError):  # read without care, the same file does run
        torch.load(tmp_path / "harmful.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "another model"}, "was not written by tiny_gpt"),
        ({"format": None}, "was not written by tiny_gpt"),
        ({"format_version": FORMAT_VERSION + 1}, f"this tiny_gpt reads {FORMAT_VERSION}"),
        ({"format_version": None}, "format version None"),
        *(({part: None}, f"it lacks {part}") for part in PARTS),
        *(({part: 7}, f"it lacks {part}") for part in PARTS),
        ({"model_config": {}}, "expected the model settings"),
        ({"model_config": vars(MODEL) | {"n_layer": 10**6 + 1, "d_model": "8"}}, "d_model must be an integer"),
        ({"model_config": vars(MODEL) | {"d_model": 16}}, "its weights do not fit its settings"),
        ({"model_config": vars(MODEL) | {"n_layer": 2}}, "its weights do not fit its settings"),
        ({"weights": {}}, "its weights do not fit its settings"),
        ({"weights": {"head.weight": "text"}}, "its weights do not fit its settings"),
        ({"tokenizer": {"type": "nonsense"}}, "unknown tokenizer"),
        ({"tokenizer": {"type": "char", "characters": "éñ"}}, "its weights do not fit its settings"),
        ({"progress": {"step": 1}}, "damaged"),
    ],
)
def test_a_file_whose_content_does_not_fit_is_refused_with_the_reason(path, changes, words):
    assert words in refusal(altered(path, **changes))


@pytest.mark.parametrize("part", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_disk_that_fills_up_while_saving_leaves_the_older_file(path, model, fill_disk, part):
    older = path.read_bytes()
    fill_disk(files, int(len(older) * part))
    with pytest.raises(OutOfResourcesError, match=r"no space left to write .*model\.pt"):
        save_model(path, model, CharTokenizer("é"), RUN, PROGRESS)
    assert path.read_bytes() == older and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("n_writes", [0, 1, 3, 10, 20])
def test_ctrl_c_while_saving_leaves_the_older_file(path, model, monkeypatch, n_writes):
    older = path.read_bytes()
    save = torch.save

    def interrupted_save(content, file):
        writes = iter(range(n_writes))

        class Interrupted:
            def write(self, data):
                if next(writes, None) is None:
                    raise KeyboardInterrupt
                return file.write(data)

            def flush(self):
                file.flush()

        save(content, Interrupted())

    monkeypatch.setattr(model_file.torch, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        save_model(path, model, CharTokenizer("é"), RUN, PROGRESS)
    assert path.read_bytes() == older and list(path.parent.iterdir()) == [path]
