"""Errors: every one has a code that stays the same when its wording changes, and an exit code."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tiny_gpt import errors
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.errors import TinyGPTError

# Functions that raise, or make, an error with the code that they are given.
CODE_FUNCTIONS = {"require": 2}
CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, TinyGPTError)}


def package_calls():
    """(module path, call) for every call in the package that makes an error, in order."""
    for path in sorted((Path(ROOT) / "tiny_gpt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in CLASSES or name in CODE_FUNCTIONS:
                yield path.relative_to(ROOT).as_posix(), name, node


def code_of(name, call):
    """The expression passed as the error's code, or None."""
    position = CODE_FUNCTIONS.get(name, 1)
    by_name = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    return by_name[0] if by_name else call.args[position] if len(call.args) > position else None


CALLS = list(package_calls())


def literals(expression):
    """The strings that an expression can be: one, or both of `a if c else b`."""
    if isinstance(expression, ast.IfExp):
        return literals(expression.body) + literals(expression.orelse)
    return [expression.value] if isinstance(expression, ast.Constant) else []


def test_every_error_has_a_literal_code():
    missing = []
    for path, name, call in CALLS:
        code = code_of(name, call)
        passed_on = isinstance(code, ast.Attribute) and code.attr == "code"  # the code of the error that caused it
        is_parameter = path == "tiny_gpt/config/checks.py" and isinstance(code, ast.Name)
        if not (passed_on or is_parameter or literals(code)):
            missing.append(f"{path}:{call.lineno} {name}")
    assert not missing, "\n".join(missing)


def test_codes_are_short_slugs():
    for _, name, call in CALLS:
        for code in literals(code_of(name, call)):
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) and len(code) <= 40, code


# Codes of faults that can be found in several modules, or in a saved file as well as among the flags.
SHARED = {"text-not-named", "several-budgets", "seed-out-of-range"}


def test_one_code_means_one_fault():
    """A code stands in one module, with one exit code, unless it is in SHARED."""
    places = defaultdict(set)
    for path, name, call in CALLS:
        for code in literals(code_of(name, call)):
            places[code].add((path, name))
    several = {code: sorted(found) for code, found in places.items() if len(found) > 1 and code not in SHARED}
    assert not several, several


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("TinyGPTError", 1),
        ("UsageError", 2),
        ("BadInputError", 3),
        ("DivergedError", 4),
        ("OutOfResourcesError", 5),
        ("RestartRequestedError", 75),
    ],
)
def test_exit_codes_are_stable(name, exit_code):
    error = getattr(errors, name)("message", code="some-code")
    assert (error.exit_code, error.code, str(error)) == (exit_code, "some-code", "message")
