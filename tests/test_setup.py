"""From any Python to a working tiny_gpt: scripts/ and tiny_gpt/bootstrap.py, with injected faults.

No test creates a real environment or uses the network: .venv's Python, pip and uv are fakes.
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

posix_only = pytest.mark.skipif(os.name == "nt", reason="the fake Python is a shell script")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the two files that setup reads. pip succeeds, uv is missing, and .venv is an empty folder."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("ROOT", "VENV", "STAMP", "LOG", "DOWNLOADS"):
        here = tmp_path / getattr(environment, name).relative_to(ROOT)
        monkeypatch.setattr(environment, name, here)
    venv = environment.VENV
    monkeypatch.setattr(bootstrap, "venv_python", lambda: sys.executable)
    monkeypatch.setattr(environment, "inspect_venv", lambda: ("3.11.7", "") if venv.exists() else ("", ""))
    monkeypatch.setattr(environment, "check_venv_module", lambda: None)
    monkeypatch.setattr(environment, "create_venv", lambda: venv.mkdir() or "3.11.7")
    monkeypatch.setattr(environment, "free_space", lambda: 100.0)
    monkeypatch.setattr(environment, "TORCH_CHECK", "pass")
    monkeypatch.setattr(environment, "COMPILE_KERNELS", "pass")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    fake_pip(monkeypatch, SUCCEEDING_PIP)
    return tmp_path


def fake_pip(monkeypatch, command):
    """Replaces pip by `command`. Returns a list that gets the extras of each call."""
    calls = []
    monkeypatch.setattr(environment, "pip_install", lambda extras: calls.append(extras) or command)
    return calls


def failing_pip(output):
    return [sys.executable, "-c", f"print({output!r}); raise SystemExit(1)"]


# scripts/setup.py: finding a Python


def test_old_python_without_a_newer_one_says_what_to_do(monkeypatch):
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (9, 0))
    monkeypatch.setattr(setup, "find_python", lambda: "")
    with pytest.raises(SystemExit) as stopped:
        setup.main()
    lines = stopped.value.code.splitlines()
    assert len(lines) == 2
    assert "3.11 or newer" in lines[0] and sys.executable in lines[0]
    assert "then try again" in lines[1]


def test_old_python_is_replaced_by_a_newer_one(monkeypatch):
    commands = []
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (9, 0))
    monkeypatch.setattr(setup, "find_python", lambda: "/newer/python")
    monkeypatch.setattr(setup, "replace_process", lambda command: commands.append(command) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", ["setup.py", "test"])
    with pytest.raises(SystemExit):
        setup.main()
    assert commands == [["/newer/python", setup.__file__, "test"]]


@posix_only
def test_python_on_path_is_run_before_it_is_chosen(tmp_path, monkeypatch):
    executable(tmp_path / "python3.14", "echo 'command not found' >&2; exit 127")
    executable(tmp_path / "python3.13", "echo 3 10 /really/3.10")
    executable(tmp_path / "python3.12", "echo 3 12 /with a space/python")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup, "venv_python", lambda: str(tmp_path / "absent"))
    assert setup.find_python() == "/with a space/python"


def test_missing_venv_module_names_its_package(monkeypatch):
    monkeypatch.setattr(environment, "ask_python", lambda *_: None)
    monkeypatch.setattr(environment.shutil, "which", lambda name: "/usr/bin/" + name)
    with pytest.raises(failures.SetupError, match=r"sudo apt install python3\.\d+-venv"):
        environment.check_venv_module()


@pytest.mark.parametrize("version", ["3.9.18", None])
def test_venv_of_an_old_or_missing_python_is_missing(monkeypatch, version):
    monkeypatch.setattr(environment, "ask_python", lambda *_: [version, "2.13.0"] if version else None)
    assert environment.inspect_venv() == ("", "")


# scripts/environment.py: the installation


def test_setup_is_done_once_until_something_changes(checkout, monkeypatch):
    calls = fake_pip(monkeypatch, SUCCEEDING_PIP)
    assert [environment.main([]), environment.main([])] == [0, 0]
    assert calls == [[]]
    with (checkout / "constraints.txt").open("a") as file:
        file.write("new==1\n")
    assert [environment.main([]), environment.main([])] == [0, 0]
    assert calls == [[], []]


def test_test_extra_is_added_and_kept(checkout, monkeypatch):
    calls = fake_pip(monkeypatch, SUCCEEDING_PIP)
    for arguments in ([], ["test"], ["test"], []):
        assert environment.main(arguments) == 0
    assert calls == [[], ["test"]]
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert environment.main([]) == 0
    assert calls == [[], ["test"], ["test"]]


def test_interrupted_setup_leaves_no_stamp(checkout, monkeypatch, capsys):
    def interrupt(process, *_):
        raise KeyboardInterrupt

    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(environment, "show_progress", interrupt)
        fake_pip(patch, [sys.executable, "-c", "import time; time.sleep(60)"])
        assert environment.main([]) == 130
    assert time.monotonic() - started < 30, "pip was left running"
    assert "Interrupted" in capsys.readouterr().err
    assert not environment.STAMP.exists() and not environment.DOWNLOADS.exists()
    assert environment.main([]) == 0
    assert environment.STAMP.is_file()


def test_failed_update_removes_the_stamp(checkout, monkeypatch):
    assert environment.main([]) == 0
    fake_pip(monkeypatch, failing_pip("ERROR: no"))
    assert environment.main(["test"]) == 1
    assert not environment.STAMP.exists()


def test_torch_that_fails_to_import_fails_the_setup(checkout, monkeypatch, capsys):
    monkeypatch.setattr(environment, "TORCH_CHECK", "raise OSError('[WinError 126] c10.dll')")
    assert environment.main([]) == 1
    assert "Visual C++" in capsys.readouterr().err
    assert not environment.STAMP.exists()


def test_usage_error_exits_with_2(capsys):
    assert environment.main(["tests"]) == 2
    assert "usage" in capsys.readouterr().err


def test_too_little_space_stops_before_pip(checkout, monkeypatch, capsys):
    calls = fake_pip(monkeypatch, SUCCEEDING_PIP)
    monkeypatch.setattr(environment, "free_space", lambda: 0.7)
    assert environment.main([]) == failures.FULL_EXIT_CODE
    message = capsys.readouterr().err
    assert "0.7 GB" in message and environment.NO_SPACE_CHECK in message
    assert not calls and not environment.VENV.exists()
    monkeypatch.setenv(environment.NO_SPACE_CHECK, "1")
    assert environment.main([]) == 0


def test_installed_torch_needs_little_space(monkeypatch):
    monkeypatch.setattr(environment, "free_space", lambda: 0.7)
    environment.check_space(environment.pinned_torch() + "+cpu")
    with pytest.raises(failures.SetupError):
        environment.check_space("2.2.2")


def test_disk_full_outside_pip_is_reported(checkout, monkeypatch, capsys):
    def fill_up():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(environment, "create_venv", fill_up)
    assert environment.main([]) == failures.FULL_EXIT_CODE
    assert "disk is full" in capsys.readouterr().err


def fake_uv(monkeypatch, folder, shell_code):
    executable(folder / "uv", shell_code)
    monkeypatch.setattr(environment.shutil, "which", lambda name: str(folder / "uv"))


@posix_only
def test_uv_installs_if_it_is_there(checkout, monkeypatch):
    calls = fake_pip(monkeypatch, SUCCEEDING_PIP)
    fake_uv(monkeypatch, checkout / "bin", f'echo "$@" > {checkout}/arguments')
    assert environment.main(["test"]) == 0 and not calls
    assert (checkout / "arguments").read_text().split() == [
        *("pip", "install", "--python", sys.executable, "-c", "constraints.txt", "-e", ".[test]")
    ]


@posix_only
def test_pip_installs_if_uv_fails(checkout, monkeypatch, capsys):
    calls = fake_pip(monkeypatch, failing_pip("ERROR: a surprise"))
    fake_uv(monkeypatch, checkout / "bin", "echo uv failed; exit 2")
    assert environment.main([]) == 1 and calls == [[]]
    message = capsys.readouterr().err
    assert "a surprise" in message and "uv failed" not in message


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
def test_pip_failure_is_explained(checkout, monkeypatch, capsys, output, words, exit_code):
    fake_pip(monkeypatch, failing_pip(output))
    assert environment.main([]) == exit_code
    message = capsys.readouterr().err
    assert re.search(words, message)
    assert len(message.splitlines()) <= 12
    assert not environment.STAMP.exists()


def test_full_disk_explains_a_failure_without_output():
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


def test_suitable_python_continues(monkeypatch):
    monkeypatch.setenv(bootstrap.LAUNCHED, "1")
    bootstrap.ensure_environment()
    assert bootstrap.LAUNCHED not in os.environ


def test_missing_environment_says_what_to_do(tmp_path):
    done = run_script(tmp_path)
    assert done.returncode == 1 and not done.stdout
    first, second = done.stderr.splitlines()
    assert "lacks charset_normalizer, filelock," in first and ", torch, tqdm, tyro," in first
    assert "make setup" in second and str(tmp_path) in second


@posix_only
def test_environment_runs_the_same_command(tmp_path):
    executable(tmp_path / ".venv/bin/python", f'echo "${bootstrap.LAUNCHED}" "$@"; exit 7')
    (tmp_path / ".venv/setup-complete").touch()
    done = run_script(tmp_path, "--prompt", "two words")
    assert done.returncode == 7
    assert done.stdout.split(maxsplit=1)[0] == "1"
    assert done.stdout.rstrip().endswith("train.py --prompt two words")


@posix_only
def test_incomplete_environment_is_not_used(tmp_path):
    executable(tmp_path / ".venv/bin/python", "echo started")
    done = run_script(tmp_path)
    assert done.returncode == 1 and "make setup" in done.stderr and not done.stdout


@posix_only
def test_broken_environment_is_started_only_once(tmp_path):
    executable(tmp_path / ".venv/bin/python", f'echo again; exec {sys.executable} "$@"')
    (tmp_path / ".venv/setup-complete").touch()
    done = run_script(tmp_path)
    assert done.stdout == "again\n"
    assert done.returncode == 1 and "make setup" in done.stderr


@posix_only
def test_without_exec_the_program_handles_ctrl_c(monkeypatch):
    # The program interrupts its waiting parent, as Ctrl+C on Windows interrupts both, then exits with its own code.
    program = "import os, signal, sys, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(0.5); sys.exit(9)"
    parent = (
        "import os; from tiny_gpt import bootstrap; os.name = 'nt'; "
        f"bootstrap.replace_process([{sys.executable!r}, '-c', {program!r}])"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (9, "")


def test_torch_version_is_read_without_import(tmp_path):
    torch_file = tmp_path / "__init__.py"
    assert bootstrap.torch_version(str(torch_file)) == bootstrap.OLDEST_TORCH
    (tmp_path / "version.py").write_text("__version__ = '2.2.2+cu121'\n")
    assert bootstrap.torch_version(str(torch_file)) == (2, 2)


# What is repeated, because a Python without any package reads one of the two


def test_bootstrap_and_constraints_match_pyproject():
    required = {re.split(r"[>=<]", line)[0]: line for line in PROJECT["dependencies"]}
    assert set(bootstrap.REQUIRED) == set(required)
    assert required["torch"].endswith(">={}.{}".format(*bootstrap.OLDEST_TORCH))
    assert PROJECT["requires-python"] == ">={}.{}".format(*bootstrap.OLDEST_PYTHON)
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert pinned >= {*required, *PROJECT["optional-dependencies"]["test"]}


@pytest.mark.parametrize(
    "path", ["scripts/setup.py", "tiny_gpt/__init__.py", "tiny_gpt/bootstrap.py", *ROOT.glob("*.py")]
)
def test_files_that_old_pythons_open_have_old_syntax(path):
    ast.parse((ROOT / path).read_text(encoding="utf-8"), feature_version=(3, 7))


def test_python_2_reaches_the_version_check_of_setup():
    source = (ROOT / "scripts/setup.py").read_text(encoding="utf-8")
    assert source.isascii()
    later_than_2 = (ast.JoinedStr, ast.AnnAssign, ast.Starred, ast.Nonlocal, ast.arg)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, later_than_2)]
    assert [node for node in nodes if not isinstance(node, ast.arg) or node.annotation] == []


def test_phases_share_one_clock(checkout, monkeypatch):
    shown = []
    monkeypatch.setattr(environment, "show_progress", lambda process, *about: shown.append(about) or process.wait())
    assert environment.main([]) == 0
    starts, phases = zip(*shown, strict=True)
    assert len(set(starts)) == 1 and phases[0] == ""
    assert [phase.split()[0] for phase in phases[1:]] == ["checking", "compiling"]
