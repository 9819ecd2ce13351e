"""train.log: the console's lines with their times."""

import re

from tests.ui.support import CONFIG, FINISHED, PREPARED, epoch_42
from tiny_gpt.run.events import Warned
from tiny_gpt.ui.log import LogFile


def test_log_has_every_line_with_its_time(tmp_path):
    log = LogFile(CONFIG, tmp_path / "train.log")
    for event in (PREPARED, *epoch_42(), Warned(168, "out of memory"), FINISHED):
        log.consume(event)
    text = (tmp_path / "train.log").read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in text.splitlines())
    for line in ("Epoch 42/80 complete - Train: 1.1234, Val: 1.2456", "step 168: out of memory", "3 h 45 min for"):
        assert line in text
