"""The house stands as drawn: imports run one way, few files print, and what must be quick does not load torch."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_gpt.bootstrap import ROOT

# Each unit may import from the floors below its own. A new file or folder gets its floor here.
FLOORS = [
    {"tiny_gpt", "errors", "bootstrap", "duration"},
    {"files"},
    {"config", "host"},
    {"device", "model", "tokenizer"},
    {"data", "kernels", "model_io"},
    {"backends"},
    {"evaluation", "training", "inference"},
    {"planning", "numerics"},
    {"run", "export"},
    {"ui"},
    {"api", "cli"},
    {"train.py", "inference.py", "__main__"},
]
FLOOR_OF = {unit: number for number, units in enumerate(FLOORS) for unit in units}
PRINTING = {"ui", "cli"}


def sources():
    """Every module of the package by its dotted name, and the two root scripts by their file name."""
    package = Path(ROOT) / "tiny_gpt"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path
    for name in ("train.py", "inference.py"):
        yield name, Path(ROOT) / name


MODULES = {name: ast.parse(path.read_bytes()) for name, path in sources()}


def unit_of(module):
    """tiny_gpt.data.corpus -> data, tiny_gpt.config -> config, train.py -> train.py."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tiny_gpt" and len(parts) > 1 else module


def imports_of(module):
    """What a module imports of this package, also inside functions."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in inner)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


PACKAGE_IMPORTS = {
    module: sorted({name for name in imports_of(module) if name.split(".")[0] == "tiny_gpt"}) for module in MODULES
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    unit = unit_of(module)
    assert unit in FLOOR_OF, f"give {unit} a floor in FLOORS"
    for imported in PACKAGE_IMPORTS[module]:
        assert imported in MODULES, f"{module} imports {imported}, which is not there"
        below = FLOOR_OF[unit_of(imported)] < FLOOR_OF[unit]
        assert below or unit_of(imported) == unit, f"{module} imports {imported} from its own floor or above"


def test_no_imports_run_in_a_circle():
    graphlib.TopologicalSorter(PACKAGE_IMPORTS).prepare()


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("tiny_gpt.inference.sampling", {"config", "errors"}),
        ("tiny_gpt.model.gpt", {"config", "model"}),
        ("tiny_gpt.errors", set()),
        ("tiny_gpt.bootstrap", set()),
        ("tiny_gpt", set()),
    ],
)
def test_what_must_know_little_imports_little(module, allowed):
    assert {unit_of(name) for name in PACKAGE_IMPORTS[module]} <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_only_the_screens_files_print(module):
    calls = [node.func for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)]
    prints = any(isinstance(called, ast.Name) and called.id == "print" for called in calls)
    assert not prints or unit_of(module) in PRINTING


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("tiny_gpt")])
def test_every_module_says_what_it_is_for(module):
    assert ast.get_docstring(MODULES[module])


def test_help_and_the_bare_package_do_not_load_torch():
    program = """if True:
        import sys
        import tiny_gpt
        loaded = {"torch", "numpy", "tyro"} & set(sys.modules)
        assert not loaded, loaded
        from tiny_gpt.cli.main import main
        for args in (["--help"], ["--version"], ["train", "--help"], ["generate", "--help"], ["nonsense"]):
            main(args)
        assert "torch" not in sys.modules and "numpy" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "tiny-gpt COMMAND" in done.stdout and "--iters-per-epoch" in done.stdout and "--top-k" in done.stdout
    assert done.stderr == "tiny-gpt: unknown command 'nonsense'; see tiny-gpt --help\n"
