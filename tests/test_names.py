"""Names: a public function, class or constant of the package has one meaning everywhere."""

import ast
from collections import defaultdict
from pathlib import Path

from tiny_gpt.bootstrap import ROOT

# Names that several modules define, with the reason. Everything else is defined once.
SAME_MEANING = {
    # Constants that every module of this kind has for itself.
    "FORMAT_VERSION": "the version of the files that a module writes",
    # One function in every module of a kind, found by this name.
    "open_run": "a run in a tracker",
    # What the command does, as a function.
    "plan": "tiny_gpt.plan and tiny-gpt plan",
    "train": "tiny_gpt.train and tiny-gpt train",
    # One mathematical function: in plain torch, compiled for CPUs, as an exact reference, or as the check of it.
    "adamw": "reference and check",
    "cross_entropy": "kernel, reference and check",
    "embed": "torch and kernel",
    "embedding": "reference and check",
    "gelu": "kernels for training and decoding, and reference",
    "linear": "reference and check",
    "rotate": "torch and kernel",
    "soft_cross_entropy": "torch and kernel",
    "softmax": "reference and check",
    "swiglu": "kernels for training and decoding",
    "FP32_BYTES": "bytes of an fp32 number",
    "MAX_REASON_CHARACTERS": "characters that a message quotes",
    "Rope": "cosines and sines of positions, as tensors and as kernel arguments",
}


def public_names():
    """{name: modules that define it at top level}, without private names and type variables."""
    found = defaultdict(set)
    for path in sorted((Path(ROOT) / "tiny_gpt").rglob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign) and not is_type_variable(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            for name in names:
                if not name.startswith("_"):
                    found[name].add(path.relative_to(ROOT).as_posix())
    return found


def is_type_variable(value):
    """T = TypeVar("T") and Alias = Something[...]: types, which mean what they stand for."""
    called = isinstance(value, ast.Call) and getattr(value.func, "id", "") == "TypeVar"
    return called or isinstance(value, ast.Subscript)


def test_public_names_are_defined_once():
    several = {name: sorted(modules) for name, modules in public_names().items() if len(modules) > 1}
    unexpected = {name: modules for name, modules in several.items() if name not in SAME_MEANING}
    assert not unexpected, "\n".join(f"{name}: {', '.join(modules)}" for name, modules in unexpected.items())
    assert several.keys() >= SAME_MEANING.keys(), "remove from SAME_MEANING what is defined once"
