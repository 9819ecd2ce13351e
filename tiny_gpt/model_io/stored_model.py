"""Reading model files without torch, which takes longer to load than a short text to write.

They are untrusted, so our own strict readers read them: no code in them runs, and sizes that they claim are checked
against the file before memory is allocated. Unlike other readers, these verify every checksum.
"""

import contextlib
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.config import BEST_FILE, ModelConfig, model_config_from
from tiny_gpt.errors import BadInputError
from tiny_gpt.model.shapes import check_dimensions, weight_shapes
from tiny_gpt.model_io.finite import require_finite
from tiny_gpt.model_io.safe_archive import SafeArchive
from tiny_gpt.model_io.safe_pickle import StoredTensor, read_pickle
from tiny_gpt.tokenizer.base import Tokenizer, tokenizer_from_dict

FORMAT = "tiny_gpt model"
FORMAT_VERSION = 1
PARTS = ("model_config", "run_config", "tokenizer", "progress", "weights")

MAX_DESCRIPTION_BYTES = 24 << 20  # all but the weights; nearly all of it is the tokenizer
MAX_OTHER_BYTES = 1 << 12  # what torch.save adds for itself
MAX_SETTINGS, MAX_TEXT_CHARACTERS = 1000, 1 << 22  # the longest command line on Linux has 2^21
MAX_INT = 2**63
MAX_REASON_CHARACTERS = 160


@dataclass(frozen=True)
class Progress:
    """How far the weights had been trained. Losses in nats per token over the run's fixed windows."""

    step: int
    epoch: int
    train_loss: float
    val_loss: float
    val_bits_per_byte: float


@dataclass(frozen=True)
class StoredModel:
    """An open model file, of which all is read but the weights."""

    config: ModelConfig
    tokenizer: Tokenizer
    progress: Progress
    run_config: dict[str, Any]
    """The settings of the run that made it, flat, as in config.json."""
    read_into: Callable[[str, memoryview], None]
    """Fill as many bytes as the weight of that name has; raises OSError or ValueError."""

    @property
    def n_weights(self) -> int:
        """Numbers in all weights."""
        return sum(math.prod(shape) for _, shape in weight_shapes(self.config, self.tokenizer.vocab_size))

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """All weights by name."""
        weights = {}
        for name, shape in weight_shapes(self.config, self.tokenizer.vocab_size):
            weights[name] = np.empty(shape, dtype=np.float32)
            self.read_into(name, weights[name].data.cast("B"))
        return weights


@contextlib.contextmanager
def open_model_file(path: Path) -> Iterator[StoredModel]:
    """A model file, checked. Raises BadInputError saying why when it is missing, cut short, none, or too new; also
    when its weights, read within the `with`, are damaged."""
    with open(_descriptor(path), "rb") as file:
        archive, content = _read(path, file)
        try:
            config = model_config_from(_plain(content["model_config"]), "its model_config")
            run_config, progress = _plain(content["run_config"]), _progress(content["progress"])
            weights = content["weights"]
            tokenizer = _tokenizer(content["tokenizer"], config, weights, archive.n_bytes)

            def read_into(name: str, memory: memoryview) -> None:
                archive.read_into(weights[name].member, memory)
                require_finite(name, np.frombuffer(memory, dtype=np.float32), str(path))

            yield StoredModel(config, tokenizer, progress, run_config, read_into)
        except (OSError, ValueError, BadInputError) as error:
            if isinstance(error, BadInputError) and error.code == "weights-not-finite":
                raise
            raise BadInputError(f"{path} is damaged: {_one_line(error)}", code="model-file-damaged") from error


def require_no_adapter(folder: Path) -> None:
    """Raise BadInputError for the folder of a LoRA adapter."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise BadInputError(
            f"{_one_line(folder)} is a LoRA adapter, which changes another model and is none itself; merge it into "
            "that model first (merge_and_unload of peft), then import the merged folder",
            code="adapter-not-a-model",
        )


def _descriptor(path: Path) -> int:
    """The file, opened, if it is one: a pipe would make us wait, and a device never ends. Raises BadInputError."""
    if os.path.isdir(path):
        require_no_adapter(path)
        raise BadInputError(
            f"{path} is a folder without a {BEST_FILE}; name a run's folder or a model file",
            code="folder-without-model",
        )
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise BadInputError(
            f"no model {path}: train one first (tiny-gpt train, or python3 train.py), or name a run or a model file",
            code="no-model",
        ) from None
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or _one_line(error)}", code="model-file-unreadable"
        ) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise BadInputError(f"{path} is a pipe or a device; name a file such as {BEST_FILE}", code="model-file-not-regular")


def read_torch_pickle(
    archive: SafeArchive, read: Callable[[bytes, Mapping[str, int]], Any], default_byteorder: bytes | None = None
) -> Any:
    """The value of an archive's data.pkl, interpreted by `read`; raises ValueError.

    `default_byteorder` is that of an archive that states none; without it, such an archive is refused.
    """
    byteorder = default_byteorder
    if byteorder is None or "byteorder" in archive.members:
        byteorder = archive.read("byteorder", MAX_OTHER_BYTES)
    if byteorder != sys.byteorder.encode():
        raise ValueError("it was written by a processor with another byte order")
    sizes = {name: member.size for name, member in archive.members.items()}
    return read(archive.read("data.pkl", MAX_DESCRIPTION_BYTES), sizes)


def _read(path: Path, file: BinaryIO) -> tuple[SafeArchive, dict[str, Any]]:
    """The archive, and its content with the weights still in it; raises BadInputError."""
    try:
        archive = SafeArchive(file)
        for name in archive.members:
            if name != "data.pkl" and not name.startswith("data/"):
                archive.read(name, MAX_OTHER_BYTES)
        content = read_torch_pickle(archive, read_pickle)
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{path} is not a tiny_gpt model file, or was cut short or damaged ({_one_line(error)}); "
            "name a file that tiny_gpt wrote, or train again",
            code="not-a-model-file",
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInputError(
            f"{path} was not written by tiny_gpt; name a file such as {BEST_FILE}", code="model-file-foreign"
        )
    if (version := content.get("format_version")) != FORMAT_VERSION:
        shown = _one_line(version) if isinstance(version, int | str | None) else "unknown"
        raise BadInputError(
            f"{path} has format version {shown}, this tiny_gpt reads {FORMAT_VERSION}; "
            "use the tiny_gpt that wrote it, or a newer one",
            code="model-file-version",
        )
    damaged_parts = [name for name in PARTS if not isinstance(content.get(name), dict)]
    if damaged_parts:
        raise BadInputError(f"{path} is damaged: it lacks {', '.join(damaged_parts)}", code="model-file-incomplete")
    return archive, content


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Settings, if each is a short text, a number, yes, no, none or a few texts; raises ValueError."""
    items: list[Any] = [*values]
    for value in values.values():
        items += value if isinstance(value, tuple) else (value,)
    fits = all(
        isinstance(item, str | float | None) or (isinstance(item, int) and -MAX_INT <= item <= MAX_INT)
        for item in items
    )
    n_characters = sum(len(item) for item in items if isinstance(item, str))
    if not fits or len(values) > MAX_SETTINGS or n_characters > MAX_TEXT_CHARACTERS:
        raise ValueError("its settings are not plain values")
    return values


def _progress(values: dict[str, Any]) -> Progress:
    """Raises ValueError unless all are numbers, the counts whole ones."""
    names = [field.name for field in fields(Progress)]
    if sorted(values) != sorted(names) or not all(type(value) in (int, float) for value in values.values()):
        raise ValueError("its progress is not made of numbers")
    counts = (values["step"], values["epoch"])
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("its progress counts no whole steps")
    if not all(-MAX_INT <= value <= MAX_INT for value in values.values()):  # of NaN neither holds
        raise ValueError("its progress is not made of numbers")
    return Progress(**values)


def _tokenizer(values: dict[str, Any], config: ModelConfig, weights: dict[str, Any], n_bytes: int) -> Tokenizer:
    """The tokenizer, once the weights are known to be what the settings say.

    Raises ValueError or BadInputError.
    """
    shapes = {name: weight.shape if isinstance(weight, StoredTensor) else () for name, weight in weights.items()}
    vocab_size = next(iter(shapes.get("head.weight", ())), 0)
    check_dimensions(config, vocab_size, shapes, n_bytes)
    tokenizer = tokenizer_from_dict(values)
    check_dimensions(config, tokenizer.vocab_size, shapes, n_bytes)
    return tokenizer


def _one_line(reason: object) -> str:
    """What a message may quote of a file: short, and no character that a terminal would obey."""
    text = str(reason)[:MAX_REASON_CHARACTERS]
    return "".join(char if char.isprintable() else "?" for char in text)
