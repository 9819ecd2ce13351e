"""The models that a server offers, each with its scheduler."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.config import BEST_FILE, ServeConfig
from tiny_gpt.inference.engine import Engine, open_engine
from tiny_gpt.serve.scheduler import Scheduler
from tiny_gpt.web.errors import RefusedError


@dataclass(frozen=True)
class ServedModel:
    """A model under the name by which requests ask for it."""

    name: str
    engine: Engine
    scheduler: Scheduler
    created: int
    """Unix time of its file."""


class ServedModels:
    """All models of a server, in the order in which they were named."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str) -> ServedModel:
        """The model `name`; "" is the first. Raises RefusedError."""
        if not name:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise RefusedError(
                404, f"no model {name[:100]!r} here; there is {', '.join(self._models)}", "model_not_found", "model"
            )
        return self._models[name]


def open_models(
    paths: Sequence[Path], config: ServeConfig, on_compile: Callable[[], None] = lambda: None
) -> ServedModels:
    """Open the models at `paths` (model files, run folders, exported folders). Raises BadInputError and UsageError.

    `on_compile` is called before a decoder is compiled, which takes some seconds.
    """
    models: list[ServedModel] = []
    for path in paths:
        engine = open_engine(path, config.device)
        if engine.must_compile:
            on_compile()
        decoder = engine.make_batch_decoder(config.max_batch, config.precision)
        scheduler = Scheduler(decoder, config.max_batch, config.max_queue)
        name = name_of(path, taken={model.name for model in models})
        models.append(ServedModel(name, engine, scheduler, int(path.stat().st_mtime)))
    return ServedModels(models)


def name_of(path: Path, taken: set[str]) -> str:
    """ "my_book" for runs/my_book and its best model, "my_book-tiny_gpt_final" for another file of it; a number is
    appended to a name that is taken."""
    path = path.resolve()
    parts = [path.name] if path.is_dir() else [path.parent.name, *([] if path.name == BEST_FILE else [path.stem])]
    base = re.sub(r"[^\w.-]+", "-", "-".join(parts)).strip("-.") or "model"
    numbered = (f"{base}-{number}" for number in range(2, 1000))
    return base if base not in taken else next(name for name in numbered if name not in taken)
