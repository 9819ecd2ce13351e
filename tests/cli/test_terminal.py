"""train.py in terminals: wide, narrow, without UTF-8, and Ctrl+C."""

import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import DETAILS, LOSS, REPORT_FILES, RUN_FILES, SPEED, TINY, files_of, flags, load, rows
from tiny_gpt.bootstrap import ROOT

needs_terminal = pytest.mark.skipif(os.name == "nt", reason="Windows has no such pseudo-terminals")


def in_terminal(argv, columns, keys_after=(), **environment):
    """Run `argv` in a pseudo-terminal. `keys_after`: what is typed once a text has appeared. (exit code, output)"""
    import fcntl
    import pty
    import termios

    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, columns))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment
    process = subprocess.Popen(
        argv,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    output, waiting = b"", list(keys_after)
    try:
        while select.select([controller], [], [], 60)[0]:
            try:
                chunk = os.read(controller, 65536)
            except OSError:  # on Linux, when the program has exited
                break
            if not chunk:
                break
            output += chunk
            if waiting and waiting[0][0] in output:
                os.write(controller, waiting.pop(0)[1])
        return process.wait(60), output
    finally:
        process.kill()
        process.wait()
        os.close(controller)


@needs_terminal
def test_wide_terminal_shows_the_guides_lines(text, tmp_path):
    argv = [sys.executable, Path(ROOT) / "train.py", "--data", text, *flags(**TINY, out_dir=tmp_path)]
    code, output = in_terminal(argv, columns=140, PYTHONIOENCODING="utf-8")
    lines = [line.strip() for line in re.split(r"[\r\n]+", output.decode())]
    assert code == 0, output.decode()
    best = re.escape(str(tmp_path / "tiny_gpt_best.pt"))
    for form in (
        rf"Epoch 2/2: 100%\|███\| 6/6 \[\d\d:\d\d<00:00, {SPEED}, {DETAILS}\]",
        rf"Epoch 2/2 complete - Train: {LOSS}, Val: {LOSS}",
        rf"✓ Saved best model \(val_loss={LOSS}\) to {best}",
    ):
        assert any(re.fullmatch(form, line) for line in lines), form
    assert files_of(tmp_path) == sorted([*RUN_FILES, *REPORT_FILES])


@pytest.mark.slow
@needs_terminal
def test_ctrl_c_on_a_narrow_ascii_terminal(text, tmp_path):
    endless = TINY | {"iters_per_epoch": 1_000_000}
    argv = [sys.executable, Path(ROOT) / "train.py", "--data", text, *flags(**endless, out_dir=tmp_path)]
    code, output = in_terminal(argv, columns=60, keys_after=[(b"train_loss", b"\x03")], PYTHONIOENCODING="ascii")
    lines = [line.strip() for line in re.split(r"[\r\n]+", output.decode("ascii"))]
    assert code == 130, output
    bars = [line.removesuffix("^C") for line in lines if line.startswith("Epoch")]  # the terminal echoes the key
    assert bars and max(map(len, bars)) <= 60
    assert any(line.startswith("* Saved best model") for line in lines)
    assert any(line.startswith("python3 inference.py --checkpoint") for line in lines)
    assert files_of(tmp_path) == sorted([*RUN_FILES, *REPORT_FILES])
    step = rows(tmp_path)[-1]["step"]
    for name in ("tiny_gpt_best.pt", "tiny_gpt_final.pt"):
        assert load(tmp_path / name).progress.step <= step
