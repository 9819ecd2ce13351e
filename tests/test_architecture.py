"""The architecture: imports go one way, few modules print, files are short, and what must start fast loads no torch."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_gpt.bootstrap import ROOT

# The packages and modules of tiny_gpt, from the bottom up. Each imports only from layers before its own.
LAYERS = [
    # Errors, durations and the search for a suitable Python: standard library only.
    {"tiny_gpt", "errors", "duration", "bootstrap"},
    # The settings, the file system, the devices, and the machine that a run shares with others.
    {"config", "files", "device", "host"},
    # The network in plain torch, text to tokens, processes that train together, and what speaks to the network and
    # knows of none of them: a web server, and downloads from the Hugging Face hub.
    {"model", "tokenizer", "distributed", "web", "hub"},
    # Text to batches, models to and from files, and what numba compiles.
    {"data", "model_io", "kernels"},
    # A model's loss with or without our kernels, and generation.
    {"backends", "inference"},
    # The training step, the loss on a validation text, files for other tools, and the API for them.
    {"training", "evaluation", "export", "serve"},
    # What a machine can do: backends, throughput and predictions; whether its arithmetic is right.
    {"planning", "numerics"},
    # One training from its start or a checkpoint to its end.
    {"run"},
    # What is printed and logged, the playground, the view of a run and its trackers.
    {"ui", "play", "trackers", "view"},
    # The Python interface.
    {"api"},
    # The commands.
    {"cli"},
    # The programs.
    {"__main__", "train.py", "inference.py"},
]
LAYER_OF = {unit: number for number, units in enumerate(LAYERS) for unit in units}
PRINTING = {"ui", "cli"}

MAX_LINES, MAX_FUNCTION_LINES = 400, 60
# A kernel is one loop over memory; calls inside would pass a dozen arrays on.
LONG_FUNCTIONS = {"tiny_gpt.kernels.training.attention.backward"}


def sources():
    """(name, path) of every module of the package, and of the two root scripts by their file names."""
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
    """What a module imports, also inside functions."""
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
def test_imports_come_from_lower_layers(module):
    unit = unit_of(module)
    assert unit in LAYER_OF, f"give {unit} a place in LAYERS"
    for imported in PACKAGE_IMPORTS[module]:
        assert imported in MODULES, f"{module} imports {imported}, which does not exist"
        is_lower = LAYER_OF[unit_of(imported)] < LAYER_OF[unit]
        assert is_lower or unit_of(imported) == unit, f"{module} imports {imported} from its own layer or a higher one"


def test_imports_have_no_cycles():
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
def test_independent_modules_import_little(module, allowed):
    assert {unit_of(name) for name in PACKAGE_IMPORTS[module]} <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_only_ui_and_cli_print(module):
    calls = [node.func for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)]
    prints = any(isinstance(called, ast.Name) and called.id == "print" for called in calls)
    assert not prints or unit_of(module) in PRINTING


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("tiny_gpt")])
def test_every_module_has_a_docstring(module):
    assert ast.get_docstring(MODULES[module])


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module):
    lines = dict(sources())[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{module} has {lines} lines: split it by idea"
    functions = [node for node in ast.walk(MODULES[module]) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        n_lines = function.end_lineno - function.lineno + 1
        name = f"{module}.{function.name}"
        assert n_lines <= MAX_FUNCTION_LINES or name in LONG_FUNCTIONS, f"{name} has {n_lines} lines"


def test_help_and_the_package_load_no_torch():
    program = """if True:
        import sys
        import tiny_gpt
        loaded = {"torch", "numpy", "tyro", "starlette"} & set(sys.modules)
        assert not loaded, loaded
        from tiny_gpt.cli.main import main
        for args in (["--help"], ["--version"], ["train", "--help"], ["generate", "--help"], ["nonsense"]):
            main(args)
        assert not {"torch", "numpy", "starlette"} & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "tiny-gpt COMMAND" in done.stdout and "--iters-per-epoch" in done.stdout and "--top-k" in done.stdout
    assert done.stderr == "tiny-gpt: unknown command 'nonsense'; see tiny-gpt --help\n"
