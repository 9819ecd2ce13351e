"""The datasets that need no network: English and Python code that are on every user's disk.

`python-docs` is the manual and the docstrings of the user's Python, about 2 MB. `package-docs` is that and the
docstrings of the packages that tiny_gpt itself needs, about 15 MB. `package-source` is the source code of both, about
80 MB. They are read from `pydoc_data.topics` and from the source files, in a fixed order and without importing any of
them, so the same versions give the same text. Tests and vendored packages are left out.
"""

import ast
import contextlib
import importlib.util
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

from tiny_gpt.errors import BadInputError

NAME = "python-docs"
PACKAGE_DOCS = "package-docs"
PACKAGE_SOURCE = "package-source"
# Dependencies of tiny_gpt, or of torch, with the longest docstrings.
PACKAGES = ("mpmath", "networkx", "numba", "numpy", "sympy", "torch")
WORD = re.compile(r"[^\W\d_]+")
# A Python that was stripped of its docstrings has some kilobytes left.
MIN_TEXT_CHARACTERS = 200_000
# Longer source files are mostly tables of numbers.
MAX_SOURCE_CHARACTERS = 300_000
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "testing",
    "tests",
    "idle_test",
    "lib2to3",
    "__pycache__",
    "_vendor",
}

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
CAN_HOLD_DEFINITIONS = (ast.stmt, ast.ExceptHandler, ast.match_case)


def read_python_docs() -> list[str]:
    """One document for each topic of the manual, and one for each module that has docstrings.

    Raises BadInputError if this Python was installed without them.
    """
    documents = [*_topics(), *_docstrings(Path(sysconfig.get_path("stdlib")))]
    if sum(map(len, documents)) < MIN_TEXT_CHARACTERS:
        raise _missing(NAME, "documentation")
    return documents


def read_package_docs() -> list[str]:
    """The documents of `read_python_docs`, then one for each module of PACKAGES that has docstrings.

    Takes half a minute of one core. Raises BadInputError as `read_python_docs` does.
    """
    documents = dict.fromkeys(read_python_docs())
    for folder in _package_folders():
        documents |= dict.fromkeys(_docstrings(folder))
    return list(documents)


def read_package_source() -> Iterator[str]:
    """Each module of the standard library and of PACKAGES, as it is written.

    Raises BadInputError if this Python was installed without its source code.
    """
    n_characters = 0
    for folder in (Path(sysconfig.get_path("stdlib")), *_package_folders()):
        for path in _modules(folder):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = (folder / path).read_text(encoding="utf-8")
                if text.strip() and len(text) <= MAX_SOURCE_CHARACTERS:
                    n_characters += len(text)
                    yield text
    if n_characters < MIN_TEXT_CHARACTERS:
        raise _missing(PACKAGE_SOURCE, "source code")


def installed_packages() -> list[str]:
    """Those of PACKAGES that are installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name)]


def words_of_the_manual() -> frozenset[str]:
    """The words of the manual, in lower case; none where this Python was installed without it. Takes 0.1 s."""
    return frozenset(WORD.findall(" ".join(_topics()).lower()))


def read_manual(max_characters: int) -> str:
    """Topics of the manual, evenly spaced, with about as many characters; "" where this Python lacks it."""
    topics = list(_topics())
    step = sum(map(len, topics)) // max_characters + 1
    return "\n\n".join(topics[::step])


def _missing(name: str, what: str) -> BadInputError:
    return BadInputError(
        f"{name}: this Python was installed without its {what}; "
        "name a text of your own instead: tiny-gpt train FILE, or python3 train.py --data FILE",
        code="python-docs-missing",
    )


def _package_folders() -> Iterator[Path]:
    """The folders of PACKAGES."""
    for name in installed_packages():
        spec = importlib.util.find_spec(name)
        yield from map(Path, (spec and spec.submodule_search_locations) or ())


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


def _docstrings(folder: Path) -> Iterator[str]:
    """One document per module: its docstring, then that of each class and function, below its name."""
    seen: set[str] = set()
    for path in _modules(folder):
        passages = []
        for node in _definitions(_parse(folder / path)):
            text = cleandoc(ast.get_docstring(node, clean=False) or "").strip()
            if text and text not in seen:
                seen.add(text)
                passages.append(text if isinstance(node, ast.Module) else f"{node.name}\n{text}")
        if passages:
            yield "\n\n".join(passages)


def _modules(folder: Path) -> list[Path]:
    """The source files below `folder`, relative to it, in the order of their names."""
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(path for path in paths if not SKIPPED_FOLDERS.intersection(path.parts))


def _definitions(module: ast.Module) -> Iterator[Definition]:
    """The module and all classes and functions in it, in the order of `ast.walk`, which also visits expressions."""
    nodes: deque[ast.AST] = deque([module])
    while nodes:
        node = nodes.popleft()
        nodes += (child for child in ast.iter_child_nodes(node) if isinstance(child, CAN_HOLD_DEFINITIONS))
        if isinstance(node, Definition):
            yield node


def _parse(path: Path) -> ast.Module:
    """The syntax tree of a file; an empty one if it is not valid Python, as some test files are on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return ast.Module(body=[], type_ignores=[])
