"""The way from any Python to a running tiny_gpt: scripts/ and tiny_gpt/bootstrap.py, with faults put in.

No test makes a real environment or asks the network: .venv's Python and pip are stand-ins.
"""

import ast
import errno
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import environment
import failures
import pytest
import setup

from tiny_gpt import bootstrap

ROOT = Path(bootstrap.ROOT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUCCEEDING_PIP = [sys.executable, "-c", "print('Successfully installed')"]

posix_only = pytest.mark.skipif(os.name == "nt", reason="the stand-in for a Python is a shell script")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the project's two set-up files, in which pip succeeds and .venv is an empty folder."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("ROOT", "VENV", "STAMP", "LOG", "DOWNLOADS"):
        here = tmp_path / getattr(environment, name).relative_to(ROOT)
        monkeypatch.setattr(environment, name, here)
    venv = environment.VENV
    monkeypatch.setattr(bootstrap, "venv_python", lambda: sys.executable)
    monkeypatch.setattr(environment, "look_into_venv", lambda: ("3.11.7", "") if venv.exists() else ("", ""))
    monkeypatch.setattr(environment, "check_venv_module", lambda: None)
    monkeypatch.setattr(environment, "make_venv", lambda: venv.mkdir() or "3.11.7")
    monkeypatch.setattr(environment, "free_space", lambda: 100.0)
    monkeypatch.setattr(environment, "TORCH_CHECK", "pass")
    monkeypatch.setattr(environment, "COMPILING", "pass")
    let_pip(monkeypatch, SUCCEEDING_PIP)
    return tmp_path


def let_pip(monkeypatch, command):
    """Puts a stand-in for pip. Returns the list of extras that it is called with."""
    calls = []
    monkeypatch.setattr(environment, "pip_install", lambda extras: calls.append(extras) or command)
    return calls


def failing_pip(output):
    return [sys.executable, "-c", f"print({output!r}); raise SystemExit(1)"]


# scripts/setup.py: which Python


def test_too_old_python_without_a_newer_one_exits_with_what_to_do(monkeypatch):
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (9, 0))
    monkeypatch.setattr(setup, "find_python", lambda: "")
    with pytest.raises(SystemExit) as stopped:
        setup.main()
    lines = stopped.value.code.splitlines()
    assert len(lines) == 2
    assert "3.11 or newer" in lines[0] and sys.executable in lines[0]
    assert "then repeat" in lines[1]


def test_too_old_python_goes_on_with_a_newer_one(monkeypatch):
    commands = []
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (9, 0))
    monkeypatch.setattr(setup, "find_python", lambda: "/newer/python")
    monkeypatch.setattr(setup, "become", lambda command: commands.append(command) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", ["setup.py", "test"])
    with pytest.raises(SystemExit):
        setup.main()
    assert commands == [["/newer/python", setup.__file__, "test"]]


@posix_only
def test_newer_python_on_path_is_asked_before_it_is_taken(tmp_path, monkeypatch):
    executable(tmp_path / "python3.14", "echo 'command not found' >&2; exit 127")
    executable(tmp_path / "python3.13", "echo 3 10 /really/3.10")
    executable(tmp_path / "python3.12", "echo 3 12 /with a space/python")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup, "venv_python", lambda: str(tmp_path / "absent"))
    assert setup.find_python() == "/with a space/python"


def test_python_without_venv_module_is_told_the_package(monkeypatch):
    monkeypatch.setattr(environment, "ask_python", lambda *_: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    with pytest.raises(failures.SetupError, match=r"sudo apt install python3\.\d+-venv"):
        environment.check_venv_module()


@pytest.mark.parametrize("version", ["3.9.18", None])
def test_venv_of_an_old_or_absent_python_counts_as_missing(monkeypatch, version):
    monkeypatch.setattr(environment, "ask_python", lambda *_: [version, "2.13.0"] if version else None)
    assert environment.look_into_venv() == ("", "")


# scripts/environment.py: the installation


def test_set_up_is_done_once_until_something_changes(checkout, monkeypatch):
    calls = let_pip(monkeypatch, SUCCEEDING_PIP)
    assert [environment.main([]), environment.main([])] == [0, 0]
    assert calls == [[]]
    with (checkout / "constraints.txt").open("a") as file:
        file.write("new==1\n")
    assert [environment.main([]), environment.main([])] == [0, 0]
    assert calls == [[], []]


def test_test_extra_is_added_and_kept(checkout, monkeypatch):
    calls = let_pip(monkeypatch, SUCCEEDING_PIP)
    for arguments in ([], ["test"], ["test"], []):
        assert environment.main(arguments) == 0
    assert calls == [[], ["test"]]
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert environment.main([]) == 0
    assert calls == [[], ["test"], ["test"]]


def test_interrupted_set_up_leaves_no_stamp_and_is_repeated(checkout, monkeypatch, capsys):
    def interrupt(process):
        raise KeyboardInterrupt

    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(environment, "show_progress", interrupt)
        let_pip(patch, [sys.executable, "-c", "import time; time.sleep(60)"])
        assert environment.main([]) == 130
    assert time.monotonic() - started < 30, "pip was left running"
    assert "Stopped" in capsys.readouterr().err
    assert not environment.STAMP.exists() and not environment.DOWNLOADS.exists()
    assert environment.main([]) == 0
    assert environment.STAMP.is_file()


def test_failed_update_withdraws_the_stamp(checkout, monkeypatch):
    assert environment.main([]) == 0
    let_pip(monkeypatch, failing_pip("ERROR: no"))
    assert environment.main(["test"]) == 1
    assert not environment.STAMP.exists()


def test_torch_that_cannot_be_imported_fails_the_set_up(checkout, monkeypatch, capsys):
    monkeypatch.setattr(environment, "TORCH_CHECK", "raise OSError('[WinError 126] c10.dll')")
    assert environment.main([]) == 1
    assert "Visual C++" in capsys.readouterr().err
    assert not environment.STAMP.exists()


def test_usage_error_exits_with_2(capsys):
    assert environment.main(["tests"]) == 2
    assert "usage" in capsys.readouterr().err


def test_too_little_space_stops_before_pip(checkout, monkeypatch, capsys):
    calls = let_pip(monkeypatch, SUCCEEDING_PIP)
    monkeypatch.setattr(environment, "free_space", lambda: 0.7)
    assert environment.main([]) == failures.FULL_EXIT_CODE
    message = capsys.readouterr().err
    assert "0.7 GB" in message and environment.NO_SPACE_CHECK in message
    assert not calls and not environment.VENV.exists()
    monkeypatch.setenv(environment.NO_SPACE_CHECK, "1")
    assert environment.main([]) == 0


def test_little_space_is_enough_where_a_fitting_torch_is_installed(monkeypatch):
    monkeypatch.setattr(environment, "free_space", lambda: 0.7)
    environment.check_space(environment.pinned_torch() + "+cpu")
    with pytest.raises(failures.SetupError):
        environment.check_space("2.2.2")


def test_disk_that_fills_up_outside_pip_is_named(checkout, monkeypatch, capsys):
    def fill_up():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(environment, "make_venv", fill_up)
    assert environment.main([]) == failures.FULL_EXIT_CODE
    assert "disk is full" in capsys.readouterr().err


# scripts/failures.py

NOTHING_FOUND = "ERROR: No matching distribution found for torch>=2.10\n"
RETRYING = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)'\n"
PIP_OUTPUTS = {
    "no network": (RETRYING + "(from versions: none)\n" + NOTHING_FOUND, "does not answer", 1),
    "connection lost": ("ReadTimeoutError(HTTPSConnectionPool): Read timed out.", "does not answer", 1),
    "one retry, then no build": (RETRYING + "(from versions: 2.2.1, 2.2.2)\n" + NOTHING_FOUND, "no torch", 1),
    "no build": ("(from versions: none)\n" + NOTHING_FOUND, "3.11 to 3.14|Intel", 1),
    "no build of another": ("ERROR: No matching distribution found for numpy==2.4.6", "no numpy for", 1),
    "certificate": ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "PIP_CERT", 1),
    "disk full": ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full", 5),
    "unknown": ("line\n" * 50 + "ERROR: a surprise", "ERROR: a surprise[^$]*delete .venv", 1),
}


@pytest.mark.parametrize(("output", "words", "exit_code"), PIP_OUTPUTS.values(), ids=PIP_OUTPUTS)
def test_pip_failure_is_told_in_plain_words(checkout, monkeypatch, capsys, output, words, exit_code):
    let_pip(monkeypatch, failing_pip(output))
    assert environment.main([]) == exit_code
    message = capsys.readouterr().err
    assert re.search(words, message)
    assert len(message.splitlines()) <= 12
    assert not environment.STAMP.exists()


def test_nearly_no_space_explains_a_failure_that_has_no_words():
    assert failures.explain("", "3.11.7", free_gb=0.0).exit_code == failures.FULL_EXIT_CODE


# tiny_gpt/bootstrap.py


def run_script(folder, *options):
    """Runs folder/train.py, which needs the environment, with a Python that has no packages (-S)."""
    (folder / "tiny_gpt").mkdir(exist_ok=True)
    shutil.copy(bootstrap.__file__, folder / "tiny_gpt")
    script = folder / "train.py"
    script.write_text("from tiny_gpt.bootstrap import ensure_environment\nensure_environment()\nprint('ran')\n")
    environ = {name: value for name, value in os.environ.items() if name != bootstrap.LAUNCHED}
    command = [sys.executable, "-S", "-E", str(script), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=20)


def executable(path, shell_code):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{shell_code}\n")
    path.chmod(0o755)


def test_python_that_has_everything_is_left_alone(monkeypatch):
    monkeypatch.setenv(bootstrap.LAUNCHED, "1")
    bootstrap.ensure_environment()
    assert bootstrap.LAUNCHED not in os.environ


def test_without_an_environment_the_launcher_says_what_to_do(tmp_path):
    done = run_script(tmp_path)
    assert done.returncode == 1 and not done.stdout
    first, second = done.stderr.splitlines()
    assert "lacks filelock, numba, numpy, psutil, pyarrow, requests, safetensors, tokenizers, torch" in first
    assert "make setup" in second and str(tmp_path) in second


@posix_only
def test_launcher_goes_on_with_the_environment(tmp_path):
    executable(tmp_path / ".venv/bin/python", f'echo "${bootstrap.LAUNCHED}" "$@"; exit 7')
    (tmp_path / ".venv/setup-complete").touch()
    done = run_script(tmp_path, "--prompt", "two words")
    assert done.returncode == 7
    assert done.stdout.split(maxsplit=1)[0] == "1"
    assert done.stdout.rstrip().endswith("train.py --prompt two words")


@posix_only
def test_launcher_ignores_an_unfinished_environment(tmp_path):
    executable(tmp_path / ".venv/bin/python", "echo started")
    done = run_script(tmp_path)
    assert done.returncode == 1 and "make setup" in done.stderr and not done.stdout


@posix_only
def test_environment_that_lacks_a_package_is_started_once_only(tmp_path):
    executable(tmp_path / ".venv/bin/python", f'echo again; exec {sys.executable} "$@"')
    (tmp_path / ".venv/setup-complete").touch()
    done = run_script(tmp_path)
    assert done.stdout == "again\n"
    assert done.returncode == 1 and "make setup" in done.stderr


@posix_only
def test_without_exec_ctrl_c_is_left_to_the_program(monkeypatch):
    # The program interrupts the waiting parent, as Windows does both at once, and ends in its own way.
    program = "import os, signal, sys, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(0.5); sys.exit(9)"
    parent = (
        "import os; from tiny_gpt import bootstrap; os.name = 'nt'; "
        f"bootstrap.become([{sys.executable!r}, '-c', {program!r}])"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (9, "")


def test_torch_version_is_read_without_importing_it(tmp_path):
    torch_file = tmp_path / "__init__.py"
    assert bootstrap.torch_version(str(torch_file)) == bootstrap.OLDEST_TORCH
    (tmp_path / "version.py").write_text("__version__ = '2.2.2+cu121'\n")
    assert bootstrap.torch_version(str(torch_file)) == (2, 2)


# What stands in two places, because one of them is read by a Python that has nothing yet


def test_launcher_and_constraints_agree_with_pyproject():
    required = {re.split(r"[>=<]", line)[0]: line for line in PROJECT["dependencies"]}
    assert set(bootstrap.NEEDED) == set(required)
    assert required["torch"].endswith(">={}.{}".format(*bootstrap.OLDEST_TORCH))
    assert PROJECT["requires-python"] == ">={}.{}".format(*bootstrap.OLDEST_PYTHON)
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert pinned >= {*required, *PROJECT["optional-dependencies"]["test"]}


@pytest.mark.parametrize(
    "path", ["scripts/setup.py", "tiny_gpt/__init__.py", "tiny_gpt/bootstrap.py", *ROOT.glob("*.py")]
)
def test_what_an_old_python_opens_it_can_read(path):
    ast.parse((ROOT / path).read_text(encoding="utf-8"), feature_version=(3, 7))


def test_python_2_can_read_setup_as_far_as_its_version_check():
    source = (ROOT / "scripts/setup.py").read_text(encoding="utf-8")
    assert source.isascii()
    later_than_2 = (ast.JoinedStr, ast.AnnAssign, ast.Starred, ast.Nonlocal, ast.arg)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, later_than_2)]
    assert [node for node in nodes if not isinstance(node, ast.arg) or node.annotation] == []
