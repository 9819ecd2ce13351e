"""The disk cache of compiled kernels."""

import importlib.util
import subprocess
import sys

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.kernels import compiled as compiled_module
from tiny_gpt.kernels.compiled import add_stamp, delete_stale_caches, has_stamp, is_cached


def module_at(path, source):
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = "from tiny_gpt.kernels.compiled import compiled\n\n@compiled\ndef add_one(x):\n    return x + 1\n"


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    (tmp_path / "adding.py").write_text(SOURCE)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from adding import add_one\n"
        "from tiny_gpt.kernels.compiled import is_cached\n"
        "before = is_cached(add_one)\n"
        "assert add_one(1) == 2 and is_cached(add_one)\n"
        "print(before, sum(add_one.stats.cache_hits.values()))\n"
    )
    for printed in ("False 0", "True 1"):
        done = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == printed, done.stderr


def test_any_changed_source_makes_a_cache_stale(tmp_path):
    add_one = module_at(tmp_path / "adding.py", SOURCE).add_one
    add_one(1)
    add_stamp(tmp_path, "gpt2")
    assert is_cached(add_one) and has_stamp(tmp_path, "gpt2") and not has_stamp(tmp_path, "qwen3")
    old = compiled_module._cache_dir(tmp_path)
    (tmp_path / "other.py").write_text("# a file that `adding` may import\n")
    compiled_module._cache_dir.cache_clear()
    assert not is_cached(add_one) and not has_stamp(tmp_path, "gpt2")
    add_stamp(tmp_path, "gpt2")
    delete_stale_caches(tmp_path)
    assert not old.exists() and has_stamp(tmp_path, "gpt2")
