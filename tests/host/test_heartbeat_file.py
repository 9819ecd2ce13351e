"""The file that watchdog and training share leaves nothing behind, however both end."""

import os
import signal
import subprocess
import sys

import pytest

from tiny_gpt.host.heartbeat_file import heartbeat_file, remove_leftovers

PROGRAM = """
import os, signal
from tiny_gpt.host.heartbeat_file import heartbeat_file
with heartbeat_file() as (file, path, descriptors):
    print(path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the file has a name elsewhere")
def test_a_killed_watchdog_leaves_no_file(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    before = set(os.listdir("/dev/shm"))
    ended = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=environment)
    assert ended.returncode == -signal.SIGKILL and ended.stdout.startswith("/proc/self/fd/")
    assert not os.listdir(tmp_path) and not {name for name in os.listdir("/dev/shm") if "tiny_gpt" in name} - before


def test_elsewhere_the_next_watchdog_deletes_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"tiny_gpt-{ended.pid}-abc", f"tiny_gpt-{os.getpid()}-abc", "tiny_gpt-book", "other"):
        (tmp_path / name).mkdir()
    with heartbeat_file() as (file, path, descriptors):
        assert os.path.exists(path) and descriptors == () and len(file.read()) > 0
        assert not (tmp_path / f"tiny_gpt-{ended.pid}-abc").exists()
    kept = {f"tiny_gpt-{os.getpid()}-abc", "tiny_gpt-book", "other"}
    assert set(os.listdir(tmp_path)) == kept
    remove_leftovers(tmp_path / "nosuch")
