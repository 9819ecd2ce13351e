"""The machine is kept awake while it trains, but not its display; if that fails, training continues and reports it."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from tiny_gpt.host import keep_awake as awake
from tiny_gpt.host.keep_awake import KeepAwake

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="systemd is used on Linux only")


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """No desktop session and no commands; returns the folder in which tests put commands."""
    for name in ("DBUS_SESSION_BUS_ADDRESS", "WAKEPY_FAKE_SUCCESS", "WAKEPY_FORCE_FAILURE"):
        monkeypatch.delenv(name, raising=False)
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    monkeypatch.setattr(platform, "release", lambda: "6.1.0")
    yield commands
    assert not [thread for thread in threading.enumerate() if thread.name == "awake"]


class Wakepy(ModuleType):
    """A fake wakepy that records its calls and their threads."""

    def __init__(self, active=True, enter=lambda: None, leave=lambda: None):
        super().__init__("wakepy")
        self.keep = SimpleNamespace(running=self.running)  # no keep.presenting, which would keep the display on
        self.active, self.enter, self.leave = active, enter, leave
        self.log = []

    @contextlib.contextmanager
    def running(self, **options):
        assert options == {"on_fail": "pass"}
        self.log.append(("enter", threading.get_ident()))
        self.enter()
        yield SimpleNamespace(active=self.active)
        self.log.append(("leave", threading.get_ident()))
        self.leave()

    @property
    def calls(self):
        return [call for call, _ in self.log]


@pytest.fixture
def install(monkeypatch):
    def install(wakepy):
        monkeypatch.setitem(sys.modules, "wakepy", wakepy)
        return wakepy

    return install


def inhibitor(folder, program):
    """A fake command `systemd-inhibit` that runs these lines of shell."""
    path = folder / "systemd-inhibit"
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\nfolder={folder.parent}\n{program}\n")
    path.chmod(0o755)


HOLD = 'echo "$@" >> $folder/asked; echo $$ > $folder/pid; exec cat'


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- wakepy ---


def test_the_real_machine_answers_silently(capfd, monkeypatch):
    monkeypatch.undo()
    start = time.monotonic()
    with KeepAwake() as keeper:
        assert keeper.problem is None or keeper.problem.startswith("this machine cannot be kept awake (")
    assert time.monotonic() - start < 2 * awake.ANSWER_TIMEOUT_S + 1
    assert capfd.readouterr() == ("", "")


def test_no_problem_if_wakepy_succeeds(monkeypatch):
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "1")
    with KeepAwake() as keeper:
        assert keeper.problem is None


def test_the_problem_is_one_line_with_a_remedy():
    with KeepAwake() as keeper:
        assert keeper.problem.startswith("this machine cannot be kept awake (no power manager answered")
        assert "if it is set to sleep when idle, turn that off" in keeper.problem
        assert "\n" not in keeper.problem


def test_the_display_may_turn_off(install):
    wakepy = install(Wakepy())
    with KeepAwake() as keeper:
        assert keeper.problem is None
        assert wakepy.calls == ["enter"]
    assert wakepy.calls == ["enter", "leave"]


def test_disabled_it_asks_nobody(install):
    wakepy = install(Wakepy())
    with KeepAwake(enabled=False) as keeper:
        keeper.release()
        keeper.renew()
        assert keeper.problem is None
    assert wakepy.calls == []


def test_release_and_renew_use_one_thread_each_time(install):
    wakepy = install(Wakepy())
    with KeepAwake() as keeper:
        keeper.renew()
        assert wakepy.calls == ["enter"]
        for _ in range(3):
            keeper.release()
            keeper.release()
            assert wakepy.calls[-1] == "leave"
            keeper.renew()
            assert wakepy.calls[-1] == "enter"
    keeper.release()
    assert wakepy.calls == ["enter", "leave"] * 4
    threads = [thread for _, thread in wakepy.log]
    assert threads[::2] == threads[1::2]


def test_a_missing_wakepy_is_reported(install):
    install(None)
    with KeepAwake() as keeper:
        assert "wakepy is not installed" in keeper.problem


@pytest.mark.parametrize("where", ["enter", "leave"])
def test_a_failing_wakepy_does_not_raise(where, install, capfd):
    def fail():
        raise ValueError("no such bus")

    install(Wakepy(**{where: fail}))
    with KeepAwake() as keeper:
        assert ("ValueError('no such bus')" in (keeper.problem or "")) == (where == "enter")
    assert capfd.readouterr() == ("", "")


def test_an_exception_in_training_passes_through(install):
    wakepy = install(Wakepy())
    with pytest.raises(ZeroDivisionError), KeepAwake():
        raise ZeroDivisionError
    assert wakepy.calls == ["enter", "leave"]


def test_a_silent_desktop_does_not_block(install, monkeypatch):
    monkeypatch.setattr(awake, "ANSWER_TIMEOUT_S", 0.1)
    answer = threading.Event()
    wakepy = install(Wakepy(enter=answer.wait))
    start = time.monotonic()
    with KeepAwake() as keeper:
        assert "the system did not answer" in keeper.problem
    assert time.monotonic() - start < 1
    answer.set()
    wait_until(lambda: wakepy.calls == ["enter", "leave"])  # released after the end


def test_a_late_answer_solves_the_problem(install, monkeypatch):
    monkeypatch.setattr(awake, "ANSWER_TIMEOUT_S", 0.1)
    answer = threading.Event()
    install(Wakepy(enter=answer.wait))
    with KeepAwake() as keeper:
        assert keeper.problem
        answer.set()
        wait_until(lambda: keeper.problem is None)


def test_without_threads_it_reports_a_problem(monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with KeepAwake() as keeper:
        assert "can't start new thread" in keeper.problem


@linux_only
def test_child_processes_of_wakepy_ignore_ctrl_c_and_hangup(install):
    blocked = []

    def enter():
        status = subprocess.run(["/bin/cat", "/proc/self/status"], capture_output=True, text=True).stdout
        mask = int(status.partition("SigBlk:")[2].split()[0], 16)
        blocked.extend(number for number in signal.Signals if mask >> (number - 1) & 1)

    install(Wakepy(enter=enter))
    with KeepAwake():
        assert blocked == [signal.SIGHUP, signal.SIGINT]
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


# --- systemd ---


@linux_only
def test_systemd_helps_without_a_desktop(bare_machine):
    inhibitor(bare_machine, HOLD)
    folder = bare_machine.parent
    with KeepAwake() as keeper:
        assert keeper.problem is None
        pid = int((folder / "pid").read_text())
        assert psutil.pid_exists(pid)
        assert os.getsid(pid) != os.getsid(0)
        keeper.release()
        assert not psutil.pid_exists(pid)
        keeper.renew()
        pid = int((folder / "pid").read_text())
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    asked = (folder / "asked").read_text().splitlines()
    assert asked == 2 * ["--what=idle:sleep --who=tiny_gpt --why=training a model --mode=block cat"]


@linux_only
def test_a_refused_sleep_lock_falls_back_to_idle(bare_machine):
    inhibitor(bare_machine, f'case "$1" in *sleep*) echo denied >&2; exit 1;; esac; {HOLD}')
    with KeepAwake() as keeper:
        assert keeper.problem is None
    assert (bare_machine.parent / "asked").read_text().startswith("--what=idle --who")


@linux_only
@pytest.mark.parametrize("program", ["exit 1", "echo failed >&2", "exec true"])
def test_a_refusing_systemd_is_a_problem(program, bare_machine, capfd):
    inhibitor(bare_machine, program)
    with KeepAwake() as keeper:
        assert "no power manager answered, and systemd refused" in keeper.problem
    assert capfd.readouterr() == ("", "")


@linux_only
def test_a_silent_systemd_is_killed(bare_machine, monkeypatch):
    monkeypatch.setattr(awake, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(awake, "EXIT_TIMEOUT_S", 0.1)
    inhibitor(bare_machine, "echo $$ > $folder/pid; exec sleep 60")
    start = time.monotonic()
    with KeepAwake() as keeper:
        assert keeper.problem
        wait_until(lambda: (bare_machine.parent / "pid").exists())
    assert time.monotonic() - start < 1
    wait_until(lambda: not psutil.pid_exists(int((bare_machine.parent / "pid").read_text() or 0)))
    wait_until(lambda: "awake" not in [thread.name for thread in threading.enumerate()])


@linux_only
def test_systemd_inside_windows_does_not_count(bare_machine, monkeypatch):
    monkeypatch.setattr(platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    inhibitor(bare_machine, HOLD)
    with KeepAwake() as keeper:
        assert "runs inside Windows" in keeper.problem


@linux_only
def test_a_killed_training_releases_the_lock(bare_machine):
    inhibitor(bare_machine, HOLD)
    program = (
        "from tiny_gpt.host.keep_awake import KeepAwake; KeepAwake().__enter__(); print('awake', flush=True); input()"
    )
    training = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with training:
        assert training.stdout.readline() == b"awake\n"
        held = psutil.Process(int((bare_machine.parent / "pid").read_text()))
        assert held.is_running()
        training.kill()
    wait_until(lambda: not held.is_running())
