"""The output folder: one process at a time, and earlier runs are archived."""

import os

import pytest

from tests.run.support import (
    finish,
)
from tiny_gpt.config import (
    BEST_FILE,
    CONFIG_FILE,
)
from tiny_gpt.errors import (
    BadInputError,
    UsageError,
)
from tiny_gpt.run.events import (
    StepDone,
)
from tiny_gpt.run.output_folder import EARLIER_FOLDER, LOCK_FILE, archive_earlier_run, run_lock
from tiny_gpt.run.run import run

pytestmark = pytest.mark.usefixtures("save_at_every_step")


def test_two_processes_cannot_train_in_one_folder(config):
    events = run(config)
    next(event for event in events if isinstance(event, StepDone))
    with pytest.raises(UsageError) as error:
        list(run(config, True))
    assert error.value.code == "run-folder-in-use" and config.train.out_dir in str(error.value)
    events.close()
    assert finish(config, resume=True).finished.last_step == 30


def test_a_folder_created_for_a_failed_start_is_removed(tmp_path):
    folder = tmp_path / "runs" / "text"
    with pytest.raises(BadInputError), run_lock(folder):
        assert (folder / LOCK_FILE).exists()
        raise BadInputError("no text", code="text-too-short")
    assert not folder.exists() and not folder.parent.exists()


def test_an_earlier_run_is_archived_by_date(tmp_path):
    assert archive_earlier_run(tmp_path) is None, "nothing to keep"
    (tmp_path / CONFIG_FILE).touch()
    assert archive_earlier_run(tmp_path) is None, "no model and no checkpoint"
    for content in ("first", "second"):
        (tmp_path / BEST_FILE).write_text(content)
        os.utime(tmp_path / BEST_FILE, (1_000_000, 1_000_000))
        archive_earlier_run(tmp_path)
    kept = (tmp_path / EARLIER_FOLDER).glob(f"*/{BEST_FILE}")
    assert {path.read_text() for path in kept} == {"first", "second"}
