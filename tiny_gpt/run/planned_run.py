"""What a run would be like, without training it: for `tiny-gpt plan` and `tiny_gpt.plan`."""

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import NamedTuple

from tiny_gpt.config import RunConfig
from tiny_gpt.data.prepare import Dataset, prepare
from tiny_gpt.data.progress import PreparationEvent
from tiny_gpt.device import configure_torch, pick_device
from tiny_gpt.planning.further_training import measure_initial_model
from tiny_gpt.planning.heuristics import min_block_size
from tiny_gpt.planning.memory import require_memory_for_smallest
from tiny_gpt.planning.planner import Planner
from tiny_gpt.run.other_text import measure_for_plan, prepare_texts, refuse_conflicts_with_first
from tiny_gpt.run.start import for_text, open_initial_model, take_shape


class PlannedRun(NamedTuple):
    """A run whose text is prepared and whose speed is measured."""

    config: RunConfig
    """The settings that the user gave, with the shape of --start-from's model."""
    dataset: Dataset
    planner: Planner
    new: tuple[RunConfig, Planner] | None = None
    """The same for a new model, to compare one that starts from a trained model with."""

    def map_planners(self, change: Callable[[Planner], Planner]) -> "PlannedRun":
        """The same with changed planners."""
        new = self.new and (self.new[0], change(self.new[1]))
        return self._replace(planner=change(self.planner), new=new)


def measure_run(requested: RunConfig) -> Generator[PreparationEvent, None, PlannedRun]:
    """Prepare the text and measure the machine for a run of `requested`.

    Raises UsageError, BadInputError, and OutOfResourcesError where not even the smallest model fits into memory.
    """
    refuse_conflicts_with_first(requested)
    device = pick_device(requested.train.device)
    configure_torch(device, requested.train.deterministic)
    initial = open_initial_model(requested.train.start_from)
    if initial is None:
        require_memory_for_smallest(requested, device)
        dataset = yield from prepare(requested.data, min_block_size(requested))
        requested = for_text(requested, dataset)
        texts = yield from prepare_texts(requested, dataset, any_time=True)
        return PlannedRun(requested, texts.own, (yield from measure_for_plan(requested, texts, device)))
    shaped = take_shape(requested, initial)
    dataset = yield from prepare(shaped.data, min_block_size(shaped), initial.tokenizer)
    shaped = for_text(shaped, dataset)
    planner = yield from measure_initial_model(shaped, dataset, initial.model, device)
    del initial
    new = replace(requested, train=replace(requested.train, start_from=""))
    new_dataset = yield from prepare(new.data, min_block_size(new))
    new = for_text(new, new_dataset)
    texts = yield from prepare_texts(new, new_dataset, any_time=True)
    return PlannedRun(shaped, dataset, planner, (new, (yield from measure_for_plan(new, texts, device))))
