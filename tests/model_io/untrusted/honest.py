"""A valid model file in parts that can be assembled wrongly: every malicious one starts from it."""

import collections
import io
import pickle
import zipfile
from dataclasses import asdict

import torch

from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.stored_model import FORMAT, FORMAT_VERSION

MODEL = ModelConfig(n_layer=1, n_head=2, d_model=8, d_ff=16, block_size=4)
QWEN3 = ModelConfig("qwen3", n_layer=1, n_head=2, d_model=8, d_ff=16, block_size=4)
ESCAPE = "\x1b]0;owned\x07\n\u202e"
CANARY = "canary"


class Stored:
    """A storage of the archive, as torch.save refers to it."""

    def __init__(self, key, n_numbers, kind=torch.FloatStorage, device="cpu"):
        self.identity = ("storage", kind, key, device, n_numbers)


class Rebuilt:
    """A tensor as torch.save describes it, true or not."""

    def __init__(self, storage, shape, strides, offset=0, requires_grad=False, hooks=None):
        self.arguments = (storage, offset, shape, strides, requires_grad, hooks or collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Calling:
    """Whatever calls `function` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identity if isinstance(value, Stored) else None


def pickled(value):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def parts(config=MODEL, vocab_size=256, **changes):
    """The content of an honest file, its tensors still tensors, with parts replaced."""
    torch.manual_seed(0)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_config": asdict(config),
        "run_config": RunConfig(model=config).to_flat(),
        "tokenizer": {"type": "byte"},
        "progress": {"step": 1, "epoch": 1, "train_loss": 2.0, "val_loss": 2.0, "val_bits_per_byte": 3.0},
        "weights": dict(GPT(config, vocab_size).state_dict()),
    }
    return content | changes


def members(content, description=None, instead=None):
    """The members of the archive that torch.save would write of `content`, with some weights replaced by `instead`."""
    records, weights = {}, content["weights"]
    if isinstance(weights, dict):
        weights = dict(weights)
        for name, weight in weights.items():
            if isinstance(weight, torch.Tensor):
                key = str(len(records))
                records[f"data/{key}"] = weight.numpy().tobytes()
                weights[name] = Rebuilt(Stored(key, weight.numel()), tuple(weight.shape), weight.stride())
        weights |= instead or {}
    description = pickled(content | {"weights": weights}) if description is None else description
    return {"data.pkl": description, "byteorder": b"little", **records, "version": b"3\n"}


def archive(content, compression=zipfile.ZIP_STORED, root="archive"):
    """A zip of (name, bytes), which may come as a dict."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, data in content.items() if isinstance(content, dict) else content:
            info = zipfile.ZipInfo(f"{root}/{name}" if root else name)
            info.compress_type = compression
            zipped.writestr(info, data)
    return file.getvalue()


def control(config=MODEL, **changes):
    return archive(members(parts(config, **changes)))


def of_parts(**changes):
    """Writes a file in which these parts of the content are others."""
    return lambda path: path.write_bytes(archive(members(parts(**changes))))


def of_members(change):
    """Writes a file whose members `change` has returned, given the honest ones."""
    return lambda path: path.write_bytes(archive(change(members(parts()))))


def later(make):
    """Writes what `make` gives, made only then, because it is large."""
    return lambda path: make()(path)


def of_bytes(change):
    """Writes a file whose bytes `change` has altered in place, or returned."""

    def write(path):
        data = bytearray(control())
        changed = change(data)
        path.write_bytes(data if changed is None else changed)

    return write
