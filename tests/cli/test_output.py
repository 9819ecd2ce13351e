"""What a process of its own shows: help without docstrings, and output that nobody can read."""

import subprocess
import sys

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.cli import process
from tiny_gpt.cli.process import run_command


def run_tiny_gpt(*args, **settings):
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, **settings)


def test_help_needs_no_docstrings():
    """With -OO Python drops them, and a dataclass has its signature instead."""
    done = run_tiny_gpt("-OO", "-m", "tiny_gpt", "generate", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Generate text with a trained model." in done.stdout and "--temperature FLOAT" in done.stdout
    assert "typing." not in done.stdout
    plain, stripped = (run_tiny_gpt(*options, "-m", "tiny_gpt", "--help").stdout for options in ([], ["-OO"]))
    assert plain == stripped != ""


def test_result_is_refused_where_output_is_closed(capfd, monkeypatch):
    """As in `tiny-gpt generate >&-`: no text is written that nobody gets."""
    ran = []
    monkeypatch.setattr(process, "open_standard_streams", lambda: False)
    assert run_command(lambda args: ran.append(args) or 0, ["--json"]) == 5 and not ran
    assert "standard output is closed" in capfd.readouterr().err
    assert run_command(lambda args: ran.append(args) or 0, [], needs_output=False) == 0 and ran


def test_closed_output_is_seen_by_a_new_process():
    command = f'exec "{sys.executable}" -m tiny_gpt data list >&-'
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 5 and "standard output is closed" in done.stderr
