"""Encoding on all processors."""

import os
import subprocess
import sys
import time

import psutil
import pytest

ENCODE = """
import sys
from pathlib import Path
from tests.data.test_token_store import open_or_build
from tiny_gpt.tokenizer.byte_char import ByteTokenizer
train, _ = open_or_build(Path(sys.argv[1]) / "store", ["0123456789 " * int(sys.argv[2])], ["held out"], ByteTokenizer())
print(len(train))
"""
LARGE = 2_000_000


needs_workers = pytest.mark.skipif(
    len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) < 2,
    reason="one processor encodes without workers",
)


@needs_workers
def test_a_script_that_encodes_without_a_main_guard_is_not_run_by_workers(tmp_path):
    script = tmp_path / "encode.py"
    script.write_text("from tiny_gpt.data import encoding\nencoding.SINGLE_PROCESS_BYTES = 0\n" + ENCODE)
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "tokens"), "10"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("110\n", "")


@pytest.mark.slow
@needs_workers
def test_killed_encoding_leaves_no_workers(tmp_path):
    """The workers of a killed program exit, and the next run deletes its temporary folder."""
    script = tmp_path / "encode.py"
    script.write_text(ENCODE)
    command = [sys.executable, str(script), str(tmp_path / "tokens"), str(LARGE)]
    program = subprocess.Popen(command)
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(program.pid).children(recursive=True)) or len(children) < 2:
        assert time.monotonic() < deadline and program.poll() is None
        time.sleep(0.01)
    program.kill()
    program.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert [path.name[0] for path in (tmp_path / "tokens").iterdir()] == ["."]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{11 * LARGE}\n", done.stderr
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["store"]
