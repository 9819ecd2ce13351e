"""Which text on this disk a person's own is related to."""

import inspect
import textwrap

import pytest

from tiny_gpt.data import related_text as module
from tiny_gpt.data.related_text import related_texts

ENGLISH = "It was a bright cold day, and all the clocks in the town were set to the same time. " * 20
GERMAN = "Der alte Mann ging langsam durch den Wald und dachte an seine Frau, die ihm fehlte. " * 20


DOCUMENTATION = "The function `open()` returns a file object, and is used with two arguments: a name and a mode. " * 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENGLISH, [("wikitext-2", "package-docs"), ("package-docs",)]),
        (DOCUMENTATION, [("package-docs",)]),
        (GERMAN, []),
        (inspect.getsource(textwrap), [("package-source",)]),
        (inspect.getsource(module), [("package-source",)]),
    ],
)
def test_what_a_text_is_related_to(text, expected):
    assert related_texts(text.encode(), is_long=False) == expected


def test_a_long_run_on_prose_may_read_all_articles():
    assert related_texts(ENGLISH.encode(), is_long=True)[0] == ("wikitext-103",)
