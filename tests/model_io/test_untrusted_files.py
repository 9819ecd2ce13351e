"""Untrusted model files: none runs code, writes, hangs, or makes the reader allocate more than its size justifies.

Run as a program, this file is the child process that opens each input of a folder and reports the cost.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.model_io.untrusted import INPUTS, LARGEST
from tests.model_io.untrusted.honest import CANARY, MODEL, QWEN3, archive, control, members, parts
from tests.model_io.untrusted.tokenizers_json import library
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import load_model

CPU = torch.device("cpu")
MB = 1 << 20
MAX_GROWTH_MB = 200
MAX_S = 2
HONEST = [
    control(),
    control(QWEN3),
    control(vocab_size=257, tokenizer={"type": "char", "characters": "é"}),
    control(tokenizer={"type": "bpe", "tokenizer_json": library()}),
]


# --- the child ---


def judge_all(folder, n_files):
    """Open each file, as a person would, and print one line of JSON about it."""
    events = []
    sys.addaudithook(lambda event, arguments: events.append((event, [str(value)[:100] for value in arguments])))
    for honest in HONEST:  # whatever is imported or allocated at first use
        (folder / "honest").write_bytes(honest)
        load_model(folder / "honest", CPU)
    baseline_mb = memory_mb()[0]
    for path in (folder / f"{number}.pt" for number in range(n_files)):
        reset_peak()
        before_mb = memory_mb()[0]
        events.clear()
        started = time.perf_counter()
        failure = outcome(path)
        seconds = time.perf_counter() - started
        seen = [event for event in events if not is_harmless(event, path)]
        report = {
            "seconds": seconds,
            "peak_mb": memory_mb()[1] - baseline_mb,
            "growth_mb": memory_mb()[1] - before_mb,
            "events": seen,
            "files": os.listdir(),
            **failure,
        }
        print(json.dumps(report), flush=True)
    events.clear()
    os.system(f"echo > {CANARY}")
    open(CANARY + "2", "w").close()
    seen = [event for event in events if not is_harmless(event, path)]
    print(json.dumps({"events": seen, "files": os.listdir()}))


def outcome(path):
    try:
        load_model(path, CPU)
    except BadInputError as error:
        return {"refusal": str(error), "exit_code": error.exit_code}
    except BaseException:
        return {"refusal": None, "traceback": traceback.format_exc()[-2000:]}
    return {"refusal": None, "traceback": "it loaded"}


def is_harmless(event, path):
    name, arguments = event
    if name == "open":
        opened, _, flags = arguments  # a path, or the descriptor of one that is open
        for_reading = not int(flags) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        # /proc tells how much memory there is for the weights.
        return for_reading and (opened == str(path) or opened.isdigit() or opened.startswith("/proc/"))
    return name == "builtins.id"


def memory_mb():
    """Resident now and at its peak since `reset_peak`, where the system tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = dict(line.split(":") for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return tuple(int(sizes.get(name, "0 kB").split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))


def reset_peak():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# --- the tests ---


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What became of each input, by name: all opened by one fresh process in an empty folder."""
    folder, empty = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("empty")
    names = [*INPUTS, *LARGEST, "watch"]
    files = [f"{number}.pt" for number in range(len(names) - 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what the inputs are made of
        for number, write in enumerate([*INPUTS.values(), *LARGEST.values()]):
            write(folder / f"{number}.pt")
    sizes = [path.stat().st_size if path.is_file() else 0 for path in map(folder.joinpath, files)]
    command = [sys.executable, __file__, str(folder), str(len(files))]
    child = subprocess.run(command, cwd=empty, capture_output=True, text=True, encoding="utf-8", timeout=300)
    for path in folder.glob("*"):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    found = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(found) == len(names), f"the process ended at {names[len(found)]!r}: {child.stderr[-2000:]}"
    assert "panicked" not in child.stderr
    return {name: report | {"size": size} for name, report, size in zip(names, found, [*sizes, 0], strict=True)}


def test_there_are_at_least_sixty():
    assert len(INPUTS) >= 60


@pytest.mark.parametrize("name", INPUTS)
def test_a_hostile_file_is_refused_and_does_nothing(reports, name):
    report = reports[name]
    message = report["refusal"]
    assert message is not None, report["traceback"]
    assert report["exit_code"] == 3
    assert len(message) < 320 and message.isprintable(), message
    assert report["events"] == [] and report["files"] == []
    assert report["seconds"] < MAX_S
    assert report["peak_mb"] < report["size"] / MB + MAX_GROWTH_MB


@pytest.mark.parametrize("name", LARGEST)
def test_a_file_as_large_as_is_allowed_takes_no_more_memory(reports, name):
    assert reports[name]["events"] == [] and reports[name]["files"] == []
    assert reports[name]["peak_mb"] < reports[name]["size"] / MB + MAX_GROWTH_MB


def test_the_watch_over_the_child_sees_what_a_file_is_not_to_do(reports):
    assert [name for name, _ in reports["watch"]["events"]] == ["os.system", "open"]
    assert sorted(reports["watch"]["files"]) == [CANARY, CANARY + "2"]


# --- honest files, and damage ---


def everything(path):
    """All that a model file gives, to compare."""
    loaded = load_model(path, CPU)
    weights = {name: weight.numpy().tobytes() for name, weight in loaded.model.state_dict().items()}
    return weights, asdict(loaded.model.config), loaded.tokenizer.to_dict(), asdict(loaded.progress), loaded.run_config


@pytest.mark.parametrize("config", [MODEL, QWEN3], ids=["gpt2", "qwen3"])
@pytest.mark.parametrize("order", [1, -1], ids=["as saved", "backwards"])
def test_what_torch_save_writes_loads_bit_for_bit_in_any_order(tmp_path, config, order):
    content = parts(config)
    torch.save(dict(list(content.items())[::order]), tmp_path / "a model, of 2 names.pt")
    weights, model_config, tokenizer, progress, run_config = everything(tmp_path / "a model, of 2 names.pt")
    assert weights == {name: weight.numpy().tobytes() for name, weight in content["weights"].items()}
    assert (model_config, run_config) == (content["model_config"], content["run_config"])
    assert (tokenizer, progress) == (content["tokenizer"], content["progress"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.pt"
    torch.save(parts(), path)
    return path


def test_a_file_cut_short_anywhere_is_refused(small, tmp_path):
    path = tmp_path / "cut.pt"
    path.write_bytes(small.read_bytes())
    for length in reversed(range(small.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(BadInputError):
            load_model(path, CPU)


def test_a_changed_byte_is_noticed_or_changes_nothing(small, tmp_path):
    whole, honest = small.read_bytes(), everything(small)
    rng = random.Random(0)
    directory = range(whole.index(b"PK\1\2"), len(whole))
    places = [*rng.choices(range(len(whole)), k=300), *rng.choices(directory, k=300)]
    n_refused = 0
    for place in places:
        damaged = whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        (tmp_path / "damaged.pt").write_bytes(damaged)
        try:
            assert everything(tmp_path / "damaged.pt") == honest, f"byte {place}"
        except BadInputError:
            n_refused += 1
    assert n_refused > len(places) // 2


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    content = parts()
    content["weights"]["norm.bias"] = torch.tensor([float("nan"), float("inf"), -float("inf")] + [0.0] * 5)
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(BadInputError) as error:
        everything(tmp_path / "nan.pt")
    assert "3 of 8 numbers in norm.bias" in str(error.value)


def test_an_archive_that_python_packed_again_loads(tmp_path):
    (tmp_path / "packed.pt").write_bytes(archive(members(parts())))
    torch.save(parts(), tmp_path / "saved.pt")
    assert everything(tmp_path / "packed.pt") == everything(tmp_path / "saved.pt")


if __name__ == "__main__":
    judge_all(Path(sys.argv[1]), int(sys.argv[2]))
