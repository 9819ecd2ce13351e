"""The best model file after a resume: kept, replaced or rebuilt."""

import pytest
import torch

from tests.run.support import (
    CPU,
    finish,
    interrupt,
    out_dir,
    same_weights,
)
from tiny_gpt.config import (
    BEST_FILE,
)
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run.events import (
    StepDone,
    Warned,
)
from tiny_gpt.run.run import run

pytestmark = pytest.mark.usefixtures("save_at_every_step")


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_lost_best_model_is_rebuilt_from_checkpoints(config, content):
    interrupt(config, after=25)
    best = out_dir(config) / BEST_FILE
    before = load_model(best, CPU)
    best.unlink()
    if content is not None:
        best.write_bytes(content)
    events = run(config, True)
    lines = []
    for event in events:
        if isinstance(event, Warned):
            lines.append(event.text)
        if isinstance(event, StepDone):
            break
    events.close()
    assert any(f"rebuilt from the checkpoint of step {before.progress.step}" in line for line in lines)
    after = load_model(best, CPU)
    assert after.progress == before.progress and same_weights(after.model.state_dict(), before.model.state_dict())


def test_a_better_model_saved_after_the_last_checkpoint_is_kept(config):
    interrupt(config, after=12)
    best = out_dir(config) / BEST_FILE
    content = torch.load(best, weights_only=True)
    content["progress"]["val_loss"] = 0.001
    torch.save(content, best)
    finished = finish(config, resume=True).finished
    assert load_model(best, CPU).progress.val_loss == 0.001 and finished.best_epoch == content["progress"]["epoch"]
