"""A signal before the first step, at any process of a training on two devices, ends all of them with the usual code."""

import os
import signal
from pathlib import Path

import pytest

if os.name == "nt":
    pytest.skip("Windows cannot connect processes", allow_module_level=True)

from tests.faults.ranks import ranks_of, started, wait_for_ranks
from tests.run.support import TEXT
from tiny_gpt.run.folders import newest_step

pytestmark = pytest.mark.slow

SMALL = ["--recipe", "overnight", "--n-layer", "1", "--n-head", "1", "--d-model", "16", "--d-ff", "16"]
SMALL += ["--block-size", "8", "--backend", "eager", "--device", "cpu"]


@pytest.mark.parametrize(
    ("at", "number", "code"),
    [("parent", signal.SIGINT, 130), ("rank 1", signal.SIGTERM, 143)],
)
def test_a_signal_before_the_first_step(tmp_path: Path, at: str, number: signal.Signals, code: int) -> None:
    text, folder, errors = tmp_path / "text.txt", tmp_path / "run", tmp_path / "errors"
    text.write_text(TEXT)
    command = ["train", str(text), "--devices", "2", "--force-devices", "--out-dir", str(folder), *SMALL]
    with started(command, errors) as process:
        assert wait_for_ranks(process, folder, newest=-1, is_early=True)
        pids = {f"rank {rank}": pid for rank, pid in ranks_of(process.pid).items()} | {"parent": process.pid}
        os.kill(pids[at], number)
        assert process.wait(60) == code
    printed = errors.read_text()
    if newest_step(folder) != -1:
        pytest.skip("on this busy machine the training had begun before the signal came")
    assert "Everything already saved is intact" in printed or "Stopped before training began" in printed
    assert "Traceback" not in printed and "Error" not in printed, printed
