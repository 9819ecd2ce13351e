"""Which text on this disk a person's own is related to."""

import inspect
import textwrap

import pytest

from tiny_gpt.data import related_text as module
from tiny_gpt.data.related_text import related_text

ENGLISH = "It was a bright cold day, and all the clocks in the town were set to the same time. " * 20
GERMAN = "Der alte Mann ging langsam durch den Wald und dachte an seine Frau, die ihm fehlte. " * 20


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (ENGLISH, "package-docs"),
        (GERMAN, ""),
        (inspect.getsource(textwrap), "package-source"),
        (inspect.getsource(module), "package-source"),
    ],
)
def test_prose_is_related_to_documentation_and_code_to_code(text, name):
    assert related_text(text.encode()) == name
