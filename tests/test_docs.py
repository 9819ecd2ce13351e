"""README and docs/ agree with the code: flags, links, file names, the tree and the layers of imports."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import cli_reference
import pytest

from tests.test_architecture import LAYERS
from tiny_gpt import bootstrap
from tiny_gpt.cli import runs
from tiny_gpt.cli.main import COMMANDS, main

ROOT = Path(bootstrap.ROOT)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("tiny_gpt", "tests", "benchmarks", "scripts", "docs")
    for path in (ROOT / folder).rglob("*")
    if "__pycache__" not in path.parts
] + [path.name for path in ROOT.iterdir()]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Flags of other programs that the documentation shows, and of every command.
OTHER_FLAGS = {"--help", "--debug", "--version"}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def code_spans(text):
    """Each line of a fenced block, and each inline code span."""
    for index, part in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        yield from part.splitlines() if index % 2 else re.findall(r"`([^`\n]+)`", part)


@cache
def flags_of(command):
    """The flags in the --help of a command and of its actions. `resume` takes those of `train` too."""
    shown = [[command], *([command, action] for action in runs.ACTIONS if command == "runs")]
    shown += [["train"]] if command == "resume" else []
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for names in shown:
            main([*names, "--help"])
    return set(FLAG.findall(printed.getvalue()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_documented_flags_exist(path):
    every = OTHER_FLAGS.union(*map(flags_of, COMMANDS))
    for span in code_spans(path.read_text(encoding="utf-8")):
        command = re.search(r"tiny-gpt (\w+)", span)
        if command and command[1] in COMMANDS:
            allowed = flags_of(command[1]) | OTHER_FLAGS
        elif span.lstrip().startswith("-") or re.search(r"(train|inference)\.py", span):
            allowed = every
        else:
            continue
        unknown = set(FLAG.findall(span.partition("#")[0])) - allowed
        assert not unknown, f"{relative(path)}: {span!r} has {unknown}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_relative_links_resolve(path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        linked = (path.parent / target).resolve() if target else path
        assert linked.exists(), f"{relative(path)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{relative(path)} links to {target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_named_files_exist(path):
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|json|jsonl))`", path.read_text(encoding="utf-8")):
        assert any(f"/{file}".endswith(f"/{name}") for file in FILES), f"{relative(path)} names {name}"


def test_architecture_tree_matches_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("## The tree")[1].split("```")[1]
    for name in re.findall(r"[\w/]+(?:\.py|/)(?=[\s,;:)]|$)", tree):
        assert any(f"/{file}".endswith(f"/{name.rstrip('/')}") for file in FILES), f"the tree names {name}"
    units = {path.name for path in (ROOT / "tiny_gpt").iterdir() if path.suffix == ".py" or path.is_dir()}
    in_tree = {name.rstrip("/") for name in re.findall(r"^  ([\w.]+/?) ", tree, flags=re.MULTILINE)}
    assert units - in_tree <= {"__init__.py", "__main__.py", "__pycache__", "bootstrap.py"}


def test_architecture_layers_match_the_import_test():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| (.*) \|$", page, flags=re.MULTILINE)
    assert [set(re.findall(r"`([^`]+)`", row)) for row in rows] == LAYERS


def test_cli_reference_is_current():
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.reference(), "run scripts/cli_reference.py"


def test_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
