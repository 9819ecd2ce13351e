"""The dataset that needs no network: the manual and the docstrings of the user's Python, about 2 MB of English.

Read from `pydoc_data.topics` and the source of the standard library, in a fixed order and without importing any of it,
so the same Python gives the same text. Tests, vendored packages and installed packages are left out.
"""

import ast
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

from tiny_gpt.errors import BadInputError

NAME = "python-docs"
WORD = re.compile(r"[^\W\d_]+")
# A Python that was stripped of its docstrings has some kilobytes left.
MIN_TEXT_CHARACTERS = 200_000
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "__pycache__",
    "_vendor",
}


def read_python_docs() -> list[str]:
    """One document for each topic of the manual, and one for each module that has docstrings.

    Raises BadInputError if this Python was installed without them.
    """
    documents = [*_topics(), *_docstrings(Path(sysconfig.get_path("stdlib")))]
    if sum(map(len, documents)) < MIN_TEXT_CHARACTERS:
        raise BadInputError(
            f"{NAME}: this Python was installed without its documentation; "
            "name a text of your own instead: tiny-gpt train FILE, or python3 train.py --data FILE",
            code="python-docs-missing",
        )
    return documents


def words_of_the_manual() -> frozenset[str]:
    """The words of the manual, in lower case; none where this Python was installed without it. Takes 0.1 s."""
    return frozenset(WORD.findall(" ".join(_topics()).lower()))


def _topics() -> Iterator[str]:
    """The topics of `help()`, such as "LISTS"; the module holds one dict literal."""
    spec = importlib.util.find_spec("pydoc_data.topics") if importlib.util.find_spec("pydoc_data") else None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return
    for node in ast.walk(_parse(Path(spec.origin))):
        if isinstance(node, ast.Dict):
            topics = ast.literal_eval(node)
            yield from dict.fromkeys(topics[name].strip() for name in sorted(topics))
            return


def _docstrings(stdlib: Path) -> Iterator[str]:
    """One document per module: its docstring, then that of each class and function, below its name."""
    paths = (path.relative_to(stdlib) for path in stdlib.rglob("*.py"))
    seen: set[str] = set()
    for path in sorted(path for path in paths if not SKIPPED_FOLDERS.intersection(path.parts)):
        passages = []
        for node in ast.walk(_parse(stdlib / path)):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = cleandoc(ast.get_docstring(node, clean=False) or "").strip()
            if text and text not in seen:
                seen.add(text)
                passages.append(text if isinstance(node, ast.Module) else f"{node.name}\n{text}")
        if passages:
            yield "\n\n".join(passages)


def _parse(path: Path) -> ast.Module:
    """The syntax tree of a file; an empty one if it is not valid Python, as some test files are on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return ast.Module(body=[], type_ignores=[])
