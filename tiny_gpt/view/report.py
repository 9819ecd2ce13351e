"""report.html: a run's page frozen into one file in its folder."""

from pathlib import Path

from tiny_gpt.config import REPORT_FILE
from tiny_gpt.data.copied_spans import CopyIndex, decoded_text
from tiny_gpt.files import atomic_write
from tiny_gpt.view.copied import CopySearch
from tiny_gpt.view.page import report_page
from tiny_gpt.view.run_folder import RunFolder
from tiny_gpt.view.text_facts import compute_text_facts, open_training_text, write_text_facts


def write_report(folder: Path, run: str = "") -> Path:
    """Write the report of the run in `folder`; `run` is how commands name it. Returns the report's path.

    Raises OutOfResourcesError if the folder cannot be written.
    """
    run_folder = RunFolder(folder)
    view = run_folder.view()
    copied = None
    dataset = open_training_text(view.checkpoint)
    if dataset is not None:
        index = CopyIndex(decoded_text(dataset.tokenizer, dataset.train))
        if view.facts is None:
            write_text_facts(folder, compute_text_facts(dataset, index))
        copied = CopySearch(index).of(view.samples)
    view = run_folder.view(copied=copied)
    path = folder / REPORT_FILE
    with atomic_write(path) as file:
        file.write(report_page(view, run or view.name).encode("utf-8", "replace"))  # the name may be no text
    return path
