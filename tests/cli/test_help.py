"""Help screens: complete, readable in a terminal of 80 columns, and with the right defaults."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import cli_reference
import pytest

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.cli.arguments import documentation
from tiny_gpt.cli.main import COMMANDS, main

# How the declaration of a section ends, whose fields are flags of their own.
SECTION_ENDS = (")", ": DataConfig", ": EvalConfig")


@pytest.fixture
def help_of(command, monkeypatch):
    """`help_of("train", ...)`: the screen in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(name, *args):
        done = command("tiny-gpt", name, *args, "--help")
        assert done.code == 0 and done.err == ""
        return done.out

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_screens_fit_80_columns(help_of, name):
    assert max(map(len, help_of(name).splitlines())) <= 80


def test_overview_fits_80_columns(command):
    assert max(map(len, command("tiny-gpt", "--help").out.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_is_the_first_line_of_the_docstring(name):
    assert documentation(COMMANDS[name].load()).splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("name", COMMANDS)
def test_no_default_is_empty(help_of, name):
    assert not re.search(r"\(default:\s*(''|None|False)?\s*\)", help_of(name))


def documented_fields():
    """(class and field, docstring or None) of every field that is a flag, from the source of config/ and cli/."""
    for folder in ("config", "cli"):
        for path in sorted((Path(ROOT) / "tiny_gpt" / folder).glob("*.py")):
            classes = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)]
            for section in classes:
                is_flags = section.name.endswith(("Config", "Command", "Script", "Mode", "Origin"))
                for field, following in itertools.pairwise([*section.body, ast.Pass()]):
                    is_section = isinstance(field, ast.AnnAssign) and ast.unparse(field).endswith(SECTION_ENDS)
                    has_help = isinstance(field, ast.AnnAssign) and "help=" in ast.unparse(field.annotation)
                    if is_flags and isinstance(field, ast.AnnAssign) and not is_section and not has_help:
                        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                        yield f"{section.name}.{ast.unparse(field.target)}", following.value.value if is_text else None


FIELDS = dict(documented_fields())


@pytest.mark.parametrize("field", FIELDS)
def test_every_flag_has_a_help_text(field):
    """Line breaks in it appear on the screen, so they stand only between sentences."""
    text = FIELDS[field]
    assert text and all(line.rstrip().endswith((".", ":", ";")) for line in text.splitlines())


def test_defaults_are_shown_where_they_are_known(help_of):
    chosen, fixed = help_of("train", "--recipe", "auto"), help_of("train", "--recipe", "overnight")
    assert re.search(r"--n-layer INT[^-]*\(default: chosen\)", chosen) and "(default: qwen3)" in chosen
    assert re.search(r"--n-layer INT[^-]*\(default: 4\)", fixed) and "(default: chosen)" not in fixed


def test_resume_lists_what_may_be_changed(help_of):
    """Without the model's settings, and without defaults: those are the run's."""
    text = help_of("resume")
    assert "--for TIME" in text and "--learning-rate FLOAT" in text and "tiny-gpt train --help" in text
    assert "--n-layer" not in text and "default:" not in text


@pytest.mark.parametrize("action", ["compare", "remove"])
def test_actions_have_help_of_their_own(help_of, action):
    text = help_of("runs", action)
    assert f"usage: tiny-gpt runs {action} [-h] RUN" in text and max(map(len, text.splitlines())) <= 80


def test_a_misspelled_command_is_recognized(capsys):
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_unused_budget_has_no_default(help_of):
    """The recipe auto trains for a time, so the default of --epochs does not apply."""
    text = " ".join(help_of("train").split())
    epochs = text[text.index("--epochs INT") : text.index("--for TIME")]
    assert "default" not in epochs and "(default: 5m)" in text


def test_import_of_the_program_is_light():
    """So that --help is fast: none of the packages that take long to import."""
    program = "import sys, tiny_gpt.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {
        "tyro",
        "torch",
        "numpy",
        "numba",
        "pyarrow",
        "requests",
        "tokenizers",
        "safetensors",
        "psutil",
        "tqdm",
        "wakepy",
    }
    assert not heavy & set(done.stdout.split())


def test_command_line_page_is_current():
    page = cli_reference.PAGE.read_text(encoding="utf-8")
    assert page == cli_reference.reference(), "run: .venv/bin/python scripts/cli_reference.py"
