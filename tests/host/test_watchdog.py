"""The watchdog restarts a training process that failed, and stops when the user or the training says so.

Each child is a few lines of Python instead of a training.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from tiny_gpt.host import memory_leak, watchdog
from tiny_gpt.host.heartbeat import OUTCOME, heartbeat, is_watched, restart_reason
from tiny_gpt.host.limits import Limits
from tiny_gpt.host.memory_leak import used_memory_bytes
from tiny_gpt.host.watchdog import RESTART_EXIT_CODE, watch

posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals between processes")

FAST = dict(poll_s=0.05, hang_s=30, grace_s=0.2, backoff_s=(0.0,))
IMPATIENT = dict(hang_s=0.4)

PRELUDE = """
import mmap, os, signal, sys, time
from pathlib import Path
from tiny_gpt.host.heartbeat import heartbeat, is_watched, restart_reason

heart = heartbeat()

def leave(code=0):
    heart.leave(code)
    raise SystemExit(code)

sys.exit = leave

def beat(n=3, every_s=0.0):
    for _ in range(n):
        heart.beat()
        time.sleep(every_s)

def note(text):
    with open("notes", "a") as file:
        file.write(text + "\\n")

def count_signals():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: note(signal.Signals(number).name))
    note("ready")
"""


def child(program):
    return [sys.executable, "-c", f"{PRELUDE}{program}\nheart.leave(0)"]


FINISH = child("beat(); note(f'again: {restart_reason()}')")
NEVER = child("note('again'); sys.exit(99)")
CRASH = child("beat(); note('run'); os._exit(1)")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The children's working folder, where they leave `notes`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def notes(folder):
    def read():
        path = folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    return read


def run(first, again=NEVER, progress=lambda: 0, **limits):
    """The exit code, and the lines for the user."""
    lines = []
    code = watch(first, again, progress, lines.append, Limits(**(FAST | limits)))
    return code, lines


def restarted(failure):
    """The line of one restart."""
    return [f"The training process {failure}; restarting it from the last checkpoint."]


class TestEnds:
    @pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 130, 143, 120])
    def test_an_exit_code_of_its_own_is_final(self, notes, code):
        assert run(child(f"beat(); sys.exit({code})")) == (code, [])
        assert notes() == []

    @pytest.mark.parametrize("program", ["os._exit(1)", "raise RuntimeError"])
    def test_an_unexpected_error_restarts_training(self, notes, program, capfd):
        assert run(child(f"beat(); {program}"), FINISH) == (0, restarted("failed with an unexpected error"))
        assert notes() == ["again: the training process failed with an unexpected error"]

    @posix_only
    @pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
    def test_a_death_by_signal_restarts_training(self, notes, name):
        code, (line,) = run(child(f"beat(); os.kill(os.getpid(), signal.{name})"), FINISH)
        number = getattr(signal, name)
        assert code == 0 and f"was killed by signal {number} ({signal.strsignal(number)})" in line
        assert ("possibly because memory ran out" in line) == (name == "SIGKILL")
        assert notes()[0].startswith(f"again: the training process was killed by signal {number}")

    def test_a_requested_restart_needs_no_beat(self, notes):
        assert run(child(f"sys.exit({RESTART_EXIT_CODE})"), FINISH)[0] == 0
        assert notes() == ["again: the training process asked for a restart"]

    @pytest.mark.parametrize("code", [0, 2, 5, 99])
    def test_an_exit_that_a_library_caused_restarts_training(self, notes, code):
        """oneMKL ends a process with 2, which is the code of a user's mistake."""
        failure = f"ended without a word, with exit code {code}"
        assert run(child(f"beat(); os._exit({code})"), FINISH) == (0, restarted(failure))
        assert run(CRASH, child(f"os._exit({code})"), max_restarts=1)[0] == 1, "also before its first step"

    def test_an_error_before_the_first_beat_is_final(self, notes):
        assert run(child("sys.exit(1)")) == (1, [])
        assert notes() == []

    @posix_only
    def test_a_death_before_the_first_beat_is_final(self, notes):
        code, (line,) = run(child("os.kill(os.getpid(), signal.SIGKILL)"))
        assert code == 137 and notes() == []
        assert line.startswith("The training process was killed by signal 9") and "before training began" in line

    def test_after_the_first_beat_failed_starts_are_retried(self):
        code, lines = run(CRASH, child("sys.exit(1)"))
        assert code == 1 and len(lines) == 3 + 1 + 4 + 1

    @posix_only
    def test_ctrl_c_to_the_child_alone_is_final(self, notes):
        assert run(child("beat(); signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), 2)")) == (130, [])

    @pytest.mark.parametrize(
        ("code", "final"), [(0xC000013A, 130), (0xC0000005, 0), (0xC0000409, 0)], ids=["ctrl-c", "access", "abort"]
    )
    def test_windows_crash_codes_restart_training(self, monkeypatch, code, final):
        class Ended(contextlib.nullcontext):
            def __init__(self, argv, env, **_):
                super().__init__(self)
                (self.code,) = argv
                with open(env["TINY_GPT_HEARTBEAT"], "r+b") as file:
                    file.write(b"\1")
                    file.seek(8 * OUTCOME)
                    file.write(b"\1" if self.code == 0 else b"\0")

            def wait(self, _):
                return self.code

        monkeypatch.setattr(watchdog.subprocess, "Popen", Ended)
        assert run([code], [0]) == (final, [] if final else restarted(f"crashed (0x{code:X})"))

    def test_a_missing_command_is_reported(self, folder):
        code, (line,) = run([str(folder / "nosuch")])
        assert code == 1 and "could not be started (" in line


class TestRestarts:
    def test_gives_up_after_three_restarts_without_progress(self, notes):
        code, lines = run(CRASH, CRASH)
        assert code == 1 and notes() == ["run"] * 4
        assert lines[3:] == [
            "The training process failed 4 times without a new checkpoint:",
            *["  it failed with an unexpected error"] * 4,
            "It is not restarted. Everything already saved is intact; continue with: tiny-gpt resume",
        ]

    def test_without_restarts_one_failure_is_reported_as_such(self):
        assert run(CRASH, max_restarts=0) == (
            1,
            [
                "The training process failed with an unexpected error.",
                "It is not restarted. Everything already saved is intact; continue with: tiny-gpt resume",
            ],
        )

    @posix_only
    def test_giving_up_after_a_signal_exits_with_its_code(self):
        killed = child("beat(); os.kill(os.getpid(), signal.SIGKILL)")
        assert run(killed, killed, max_restarts=1)[0] == 137

    def test_each_checkpoint_resets_the_count_of_failures(self, notes):
        program = "beat(); runs = Path('notes').read_text().count('run'); note('run'); runs >= 5 or os._exit(1)"
        five_times = child(program)
        assert run(CRASH, five_times, progress=lambda: len(notes()), max_restarts=1)[0] == 0
        assert notes() == ["run"] * 6

    def test_progress_is_asked_for_when_training_begins(self, notes):
        """So that the run's folder is known before it may be moved."""
        asked = []
        run(child("beat(); note('begun'); time.sleep(0.3)"), progress=lambda: asked.append(notes()) or 0)
        assert len(asked) == 2 and asked[0] == []

    @posix_only
    def test_a_deleted_working_folder_is_left(self, notes, folder, monkeypatch):
        gone = folder / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        again = child(f"os.chdir({str(folder)!r}) if os.getcwd() == '/' else None; beat(); note('again')")
        code, _ = run(child(f"beat(); os.rmdir({str(gone)!r}); os._exit(1)"), again)
        assert code == 0 and notes() == ["again"]

    @posix_only
    def test_a_working_folder_that_was_made_again_is_used(self, notes, folder, monkeypatch):
        gone = folder / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        program = f"beat(); os.rmdir({str(gone)!r}); os.mkdir({str(gone)!r}); os._exit(1)"
        assert run(child(program), child("beat(); note(os.getcwd())"))[0] == 0
        assert (gone / "notes").read_text().strip() == str(gone)

    def test_unreadable_progress_counts_as_none(self, notes):
        assert run(CRASH, CRASH, progress=lambda: 1 / 0)[0] == 1
        assert notes() == ["run"] * 4

    def test_a_failing_report_does_not_end_supervision(self, notes):
        def fail(_):
            raise OSError

        assert watch(CRASH, FINISH, lambda: 0, fail, Limits(**FAST)) == 0

    def test_waits_grow(self, monkeypatch):
        slept = []
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=time.monotonic, sleep=slept.append))
        run(CRASH, CRASH, backoff_s=(1.0, 5.0), max_restarts=3)
        assert sum(slept) == pytest.approx(11)


class TestHangs:
    @posix_only
    def test_silence_is_a_hang(self, notes):
        code, (line,) = run(child("beat(); time.sleep(60)"), FINISH, **IMPATIENT)
        assert code == 0 and "hung for 0 s" in line
        assert notes() == ["again: the training process hung for 0 s"]

    @posix_only
    @pytest.mark.parametrize(
        "program",
        ["signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)"],
        ids=["deaf", "stopped"],
    )
    def test_a_child_that_ignores_sigterm_is_killed(self, program):
        code, (line,) = run(child(f"beat(); {program}"), FINISH, **IMPATIENT)
        assert code == 0 and "hung" in line

    @posix_only
    def test_a_hung_child_that_exits_cleanly_is_restarted(self):
        program = "beat(); signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)"
        assert run(child(program), FINISH, grace_s=60, **IMPATIENT)[0] == 0

    def test_preparation_may_take_any_time(self):
        assert run(child("time.sleep(0.4); beat()"), hang_s=0.2) == (0, [])

    @posix_only
    @pytest.mark.parametrize(
        "how", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGSTOP)", "os.read(os.pipe()[0], 1)"]
    )
    def test_a_restarted_child_that_waits_for_nothing_is_restarted(self, notes, how):
        again = child(f"""note("again")
if len(Path("notes").read_text().split()) < 3: {how}
beat()""")
        code, lines = run(CRASH, again, **IMPATIENT)
        assert code == 0 and notes() == ["run", "again", "again"]
        assert re.search(r"hung for \d s before its first step", lines[1])

    @posix_only
    def test_a_restarted_child_that_computes_has_longer(self):
        program = "end = time.monotonic() + 1.2\nwhile time.monotonic() < end: pass\nbeat()"
        assert run(CRASH, child(program), **IMPATIENT)[0] == 0
        busy = child("while True: pass")
        code, lines = run(CRASH, busy, start_s=1.0, max_restarts=1, **IMPATIENT)
        assert code == 1 and "before its first step" in lines[-2]

    def test_a_restarted_child_that_reports_has_longer(self):
        program = "for _ in range(12): heart.prepare(); time.sleep(0.1)\nbeat()"
        assert run(CRASH, child(program), **IMPATIENT)[0] == 0

    def test_slow_steps_allow_longer_silence(self):
        program = "beat(5, every_s=0.1); time.sleep(0.5); beat()"
        assert run(child(program), hang_s=0.3, hang_factor=20) == (0, [])

    def test_a_sleep_of_the_machine_is_no_hang(self, monkeypatch):
        polls = itertools.count()
        awake = time.monotonic
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: awake() + 1000 * (next(polls) // 3))
        assert run(child("beat(5, every_s=0.1)"), hang_s=2) == (0, [])

    @posix_only
    def test_a_stopped_group_is_no_hang(self, start, wait_for):
        parent = start(child("beat(); note('ready'); beat(4, every_s=0.1)"), **IMPATIENT)
        wait_for("ready")
        os.killpg(parent.pid, signal.SIGSTOP)
        time.sleep(0.6)
        os.killpg(parent.pid, signal.SIGCONT)
        assert parent.wait(20) == 0


LEAK = dict(leak_poll_s=0.05, leak_settle_s=0.15, leak_slack_bytes=20_000_000, leak_factor=1.5)
HOARD = "beat(15, 0.02); hoard = bytearray(b'x') * 100_000_000\n"
EXIT_ON_REQUEST = "while not heart.restart_requested: beat(1, 0.02)\nsys.exit(75)"


class TestMemory:
    def test_a_leak_requests_a_restart(self, notes):
        program = HOARD + EXIT_ON_REQUEST
        code, (line,) = run(child(program), FINISH, **LEAK)
        assert code == 0 and re.search(r"grew from 0\.0 to 0\.\d GB of memory", line)

    def test_a_child_that_ignores_the_request_is_terminated(self):
        program = f"{HOARD}beat(10_000, 0.02)"
        code, (line,) = run(child(program), FINISH, **LEAK | IMPATIENT)
        assert code == 0 and "grew" in line

    @pytest.mark.parametrize(("gigabytes", "leaks"), [([1, 9, 9, 1, 9, 9, 1], False), ([1, 9, 9, 9], True)])
    def test_memory_soon_freed_is_no_leak(self, monkeypatch, gigabytes, leaks):
        used = iter([2**30 * size for size in gigabytes])
        monkeypatch.setattr(memory_leak, "used_memory_bytes", lambda pid: next(used))
        detector = memory_leak.LeakDetector(Limits(leak_settle_s=15.0))
        assert any(detector.check(0, elapsed_s=10.0) for _ in gigabytes) == leaks

    def test_scarce_memory_lowers_the_limit(self, monkeypatch):
        monkeypatch.setattr(memory_leak.psutil, "virtual_memory", lambda: SimpleNamespace(available=2, total=100))
        program = HOARD + EXIT_ON_REQUEST
        code, (line,) = run(child(program), FINISH, **LEAK | dict(leak_slack_bytes=10**12))
        assert code == 0 and "grew" in line

    def test_mapped_files_do_not_count_as_memory(self, folder):
        (folder / "tokens").write_bytes(bytes(100_000_000))
        program = """beat(15, 0.02)
with open("tokens", "rb") as file:
    tokens = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
assert sum(tokens[::4096]) == 0
beat(20, 0.02)
sys.exit(heart.restart_requested)"""
        assert run(child(program), **LEAK) == (0, [])

    def test_a_process_that_is_gone_uses_none(self):
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        assert used_memory_bytes(process.pid) == 0
        assert used_memory_bytes(os.getpid()) > 10_000_000


PARENT = """
import json, signal, sys
from tiny_gpt.host.limits import Limits
from tiny_gpt.host.watchdog import watch

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the test runner's shell made of it
first, again, limits = json.loads(sys.argv[1])
sys.exit(watch(first, again, lambda: 0, lambda line: print(line, flush=True), Limits(**limits)))
"""


@pytest.fixture
def start():
    """`start(first)`: a watchdog with a session of its own, ended with its child after the test."""
    parents = []

    def start(first, again=NEVER, **limits):
        command = [sys.executable, "-c", PARENT, json.dumps([first, again, FAST | limits])]
        parents.append(subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True))
        return parents[-1]

    yield start
    for parent in parents:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


@pytest.fixture
def wait_for(notes):
    def wait(*lines):
        deadline = time.monotonic() + 20
        while notes()[-len(lines) :] != list(lines):
            assert time.monotonic() < deadline, notes()
            time.sleep(0.01)

    return wait


@posix_only
class TestStopping:
    # Its sleep is longer than the parent would need to send a second signal.
    SAVE = "beat(); count_signals(); time.sleep(0.5); note('saved'); sys.exit({code})"
    POLL_S = 0.1

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["parent", "both"])
    def test_a_signal_reaches_the_child_once(self, start, wait_for, notes, send, number, code):
        parent = start(child(self.SAVE.format(code=code)), poll_s=self.POLL_S)
        wait_for("ready")
        send(parent.pid, number)
        assert parent.wait(20) == code
        assert notes() == ["ready", signal.Signals(number).name, "saved"]

    def test_a_pending_signal_is_not_sent_twice(self, start, wait_for, notes):
        program = "beat(); count_signals(); sum(range(30_000_000)); time.sleep(0.2); sys.exit(130)"
        parent = start(child(program), poll_s=0.05)
        wait_for("ready")
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait(20) == 130
        assert notes() == ["ready", "SIGINT"]

    def test_a_second_signal_reaches_the_child_too(self, start, wait_for, notes):
        program = """beat(); count_signals()
while Path("notes").read_text().count("SIGINT") < 2: time.sleep(0.05)
sys.exit(130)"""
        parent = start(child(program), poll_s=self.POLL_S)
        wait_for("ready")
        os.killpg(parent.pid, signal.SIGINT)
        wait_for("ready", "SIGINT")
        deadline = time.monotonic() + 20
        while parent.poll() is None and time.monotonic() < deadline:
            os.kill(parent.pid, signal.SIGINT)  # lost if the parent has not yet handled the one before
            time.sleep(0.5)
        assert parent.wait(0) == 130
        assert notes()[:3] == ["ready", "SIGINT", "SIGINT"]

    @pytest.mark.parametrize("end", ["sys.exit(75)", "os.kill(os.getpid(), signal.SIGKILL)"])
    def test_no_restart_after_a_signal(self, start, wait_for, notes, end):
        parent = start(child(f"beat(); count_signals(); time.sleep(0.3); {end}"))
        wait_for("ready")
        os.kill(parent.pid, signal.SIGTERM)
        assert parent.wait(20) == 143
        assert "again" not in notes()

    def test_a_signal_cuts_the_wait_short(self, start):
        parent = start(CRASH, backoff_s=(60,))
        assert "restarting it" in parent.stdout.readline()
        os.kill(parent.pid, signal.SIGTERM)
        assert parent.wait(20) == 143

    def test_a_child_that_hangs_while_stopping_is_killed(self, start, notes):
        parent = start(child("beat(); count_signals(); note(str(os.getpid()))\nwhile True: time.sleep(1)"), **IMPATIENT)
        pid = self.line(notes, 1)
        os.kill(parent.pid, signal.SIGINT)
        assert parent.wait(20) == 130
        assert not psutil.pid_exists(int(pid)) and "hung" in parent.stdout.read()

    @staticmethod
    def line(notes, i):
        """The i-th line that the child notes, once it is there."""
        deadline = time.monotonic() + 20
        while len(notes()) <= i and time.monotonic() < deadline:
            time.sleep(0.01)
        return notes()[i]

    def test_sighup_is_left_to_the_child(self, start, wait_for, notes):
        program = "signal.signal(signal.SIGHUP, lambda *_: note('hung up')); beat(); note('ready'); time.sleep(0.3)"
        parent = start(child(program))
        wait_for("ready")
        os.killpg(parent.pid, signal.SIGHUP)
        assert parent.wait(20) == 0
        assert notes() == ["ready", "hung up"]

    def test_a_child_survives_its_parent(self, start, wait_for, notes):
        parent = start(child("beat(); note(os.environ['TINY_GPT_HEARTBEAT']); time.sleep(0.3); beat(); note('done')"))
        path = self.line(notes, 0)
        parent.kill()
        wait_for(path, "done")
        if sys.platform == "linux":
            assert path.startswith("/proc/self/fd/"), "there is no file to leave"
        else:
            shutil.rmtree(os.path.dirname(path))  # its parent cannot


class TestSurroundings:
    def test_the_child_shares_the_terminal_and_leaves_no_file(self, notes, folder, capfd):
        program = (
            "beat(); note(os.environ['TINY_GPT_HEARTBEAT']); note(f'{is_watched()} {restart_reason()!r}'); print('hi')"
        )
        if os.name != "nt":
            program += "; note(str(os.getpgrp()))"
        assert run(child(program))[0] == 0
        shared, about, *group = notes()
        assert not os.path.exists(shared) and about == "True ''"
        assert group in ([], [str(os.getpgrp())]) and capfd.readouterr().out == "hi\n"

    def test_signal_handlers_are_restored(self):
        numbers = [*watchdog.STOP_SIGNALS, *([signal.SIGHUP] if os.name != "nt" else [])]
        before = [signal.getsignal(number) for number in numbers]
        run(child(""))
        assert [signal.getsignal(number) for number in numbers] == before

    def test_any_thread_may_watch(self):
        codes = []
        thread = threading.Thread(target=lambda: codes.append(run(CRASH, FINISH)[0]))
        thread.start()
        thread.join()
        assert codes == [0]

    def test_without_a_parent_there_is_no_heartbeat(self, monkeypatch, folder):
        monkeypatch.delenv("TINY_GPT_HEARTBEAT", raising=False)
        assert heartbeat.__wrapped__() is None and not is_watched() and restart_reason() == ""
        (folder / "empty").touch()
        for path in ("nosuch", "empty"):
            monkeypatch.setenv("TINY_GPT_HEARTBEAT", path)
            assert heartbeat.__wrapped__() is None

    def test_the_parent_imports_neither_torch_nor_numpy(self):
        program = "import sys, tiny_gpt.host.watchdog; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def group_of(program):
    """A launcher as torchrun is: it starts the process that has the heartbeat and reports success if that does."""
    return [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.run({child(program)!r}).returncode)"]


def run_group(first, again=NEVER, **limits):
    lines = []
    return watch(first, again, lambda: 0, lines.append, Limits(**(FAST | limits)), is_group=True), lines


@posix_only
class TestGroups:
    def test_the_code_that_was_announced_counts(self, notes):
        assert run_group(group_of("beat(); heart.leave(4); os._exit(0)")) == (4, [])

    def test_a_launcher_that_reports_a_failure_is_believed(self, notes):
        """It ends the others with TERM, which looks as if the user had asked them to stop."""
        code, (line,) = run_group(group_of("beat(); heart.leave(143); os._exit(1)"), group_of("beat(); note('again')"))
        assert code == 0 and "restarting it" in line and notes() == ["again"]

    def test_signals_go_to_the_process_that_has_the_heartbeat(self, notes, monkeypatch):
        program = "count_signals(); beat(); time.sleep(1); time.sleep(1)"
        timer = threading.Timer(0, lambda: (wait_for_note(notes, "ready"), os.kill(os.getpid(), signal.SIGTERM)))
        timer.start()
        code, _ = run_group(group_of(f"{program}; heart.leave(143); os._exit(0)"))
        timer.join()
        assert code == 143 and notes() == ["ready", "SIGTERM"]

    def test_a_group_that_is_still_starting_is_stopped_at_once(self, monkeypatch):
        launcher = [sys.executable, "-c", "import time; time.sleep(60)"]
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        assert run_group(launcher) == (130, ["Stopped before training began."])
        timer.join()

    def test_processes_that_wait_for_one_that_has_left_are_ended(self):
        program = child("heart.leave(143); os._exit(0)")
        launcher = f"import subprocess, time; subprocess.run({program!r}); time.sleep(60)"
        assert run_group([sys.executable, "-c", launcher], leave_s=0.2) == (143, [])

    def test_what_a_killed_launcher_leaves_is_ended(self, notes):
        program = "beat(); note(str(os.getpid())); os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
        code, _ = run_group(group_of(program), group_of("beat()"))
        assert code == 0 and has_ended(int(notes()[0]))


def wait_for_note(notes, text, patience_s=20):
    end = time.monotonic() + patience_s
    while text not in notes() and time.monotonic() < end:
        time.sleep(0.02)


def has_ended(pid):
    """Its parent is gone, so it may remain as a zombie."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True
