"""Autotuning on simulated machines: candidates take made-up seconds by a made-up clock."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from tiny_gpt import device
from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.files import cache_folder
from tiny_gpt.planning import autotune, autotune_cache
from tiny_gpt.planning.autotune import Workload, backend_candidates, choose_backend, time_candidates, uses_torch_compile
from tiny_gpt.planning.types import BackendChoice, Candidate

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
CONFIG = RunConfig(ModelConfig(n_layer=3, n_head=2, d_model=16, d_ff=32, block_size=8), train=TrainConfig(batch_size=4))
LONG = replace(CONFIG, train=replace(CONFIG.train, steps=10**12))
VOCAB_SIZE = 11


def with_train(**changes):
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch):
    monkeypatch.setattr(autotune, "waited_for_cores_s", lambda: 0.0)


@pytest.fixture
def fast_bf16(monkeypatch):
    monkeypatch.setattr(device, "_bf16_is_faster", lambda device: device.type != "mps")


@pytest.fixture
def slow_bf16(monkeypatch):
    monkeypatch.setattr(device, "_bf16_is_faster", lambda device: False)


class SimulatedMachine:
    """Runs candidates by name: each takes the seconds given for it, or raises the exception given for it."""

    def __init__(self, seconds, first=None):
        """`first` is for the first pass of a candidate, where that differs."""
        self.seconds, self.first = seconds, first or {}
        self.now, self.ran = 0.0, []
        self.n_tunings = 0

    def clock(self):
        return self.now

    def make_trials(self, workload, candidates):
        self.n_tunings += 1
        return {candidate: lambda candidate=candidate: self.run(str(candidate)) for candidate in candidates}

    def run(self, name):
        time = self.first.get(name) if name not in self.ran else None
        time = self.seconds[name] if time is None else time
        self.ran.append(name)
        if isinstance(time, Exception):
            raise time
        self.now += next(time) if isinstance(time, itertools.cycle) else time

    def choose(self, config=CONFIG, device=CPU, vocab_size=VOCAB_SIZE):
        return choose_backend(config, vocab_size, device, self.make_trials, self.clock)

    def time_all(self):
        candidates = [Candidate(*name.split()) for name in self.seconds]
        return time_candidates(self.make_trials(None, candidates), self.clock)


CPU_SECONDS = {"fused bf16": 0.04, "fused fp32": 0.1, "eager bf16": 0.06, "eager fp32": 0.2}


def names(candidates):
    return [str(candidate) for candidate in candidates]


# Candidates.


def test_all_backends_and_useful_precisions_are_candidates(fast_bf16):
    assert names(backend_candidates(CONFIG, CPU)) == list(CPU_SECONDS)
    assert names(backend_candidates(LONG, CUDA)) == ["cuda_graph bf16", "eager bf16", "compiled bf16"]
    assert names(backend_candidates(CONFIG, MPS)) == ["eager fp32"]


def test_slow_bf16_is_never_tried(slow_bf16):
    """A single step may take minutes."""
    assert names(backend_candidates(CONFIG, CPU)) == ["fused fp32", "eager fp32"]
    assert names(backend_candidates(LONG, CUDA)) == ["cuda_graph fp32", "eager fp32", "compiled fp32"]


def test_flags_restrict_the_candidates(fast_bf16, monkeypatch):
    assert names(backend_candidates(with_train(backend="eager"), CPU)) == ["eager bf16", "eager fp32"]
    assert names(backend_candidates(with_train(precision="fp32"), CPU)) == ["fused fp32", "eager fp32"]
    assert names(backend_candidates(with_train(backend="compiled", precision="fp32"), MPS)) == ["compiled fp32"]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert names(backend_candidates(with_train(backend="cuda_graph", precision="bf16"), CUDA)) == ["cuda_graph bf16"]


@pytest.mark.parametrize(
    ("backend", "device", "possible"),
    [("fused", CUDA, "cuda_graph, eager, compiled or auto"), ("cuda_graph", CPU, "fused, eager, compiled or auto")],
    ids=["cuda", "cpu"],
)
def test_a_missing_backend_is_refused_with_the_others(fast_bf16, backend, device, possible):
    with pytest.raises(UsageError) as error:
        backend_candidates(with_train(backend=backend), device)
    assert error.value.code == "backend-not-on-device"
    assert f"--backend {backend}" in str(error.value) and possible in str(error.value)


def test_short_runs_are_not_compiled(fast_bf16):
    uncompiled = ["cuda_graph bf16", "eager bf16"]
    for short in (CONFIG, with_train(for_="9m"), with_train(for_="10h", deterministic=True)):
        assert names(backend_candidates(short, CUDA)) == uncompiled
    for long in (LONG, with_train(for_="10m")):
        assert names(backend_candidates(long, CUDA)) == [*uncompiled, "compiled bf16"]
    assert names(backend_candidates(with_train(backend="compiled"), CUDA)) == ["compiled bf16"]


def test_compilation_is_announced(fast_bf16):
    assert uses_torch_compile(LONG, CUDA) and uses_torch_compile(with_train(backend="compiled"), CPU)
    assert not uses_torch_compile(LONG, CPU) and not uses_torch_compile(with_train(backend="fused"), CUDA)


def test_one_slow_product_shows_that_bf16_is_slow(monkeypatch):
    """On a CPU without bf16 units each product may take seconds."""
    seconds = itertools.count(step=2 * device.PATIENCE_S)
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(seconds))
    device._product_seconds(torch.bfloat16)
    assert next(seconds) == pytest.approx(2 * 2 * device.PATIENCE_S), "the clock was read before and after one product"


def test_this_processor_has_a_name():
    assert device.processor_name() == device.processor_name() != ""


# Timing.


def test_the_fastest_pass_counts_and_candidates_take_turns():
    machine = SimulatedMachine({"fused fp32": itertools.cycle([0.9, 0.1, 0.2]), "eager fp32": 0.11})
    timings, failures = machine.time_all()
    assert {str(name): round(timing.wall_s, 6) for name, timing in timings.items()} == {
        "fused fp32": 0.1,
        "eager fp32": 0.11,
    }
    assert failures == {}
    assert machine.ran[:4] == ["fused fp32", "eager fp32"] * 2


def test_a_slow_first_pass_does_not_count():
    machine = SimulatedMachine({"fused fp32": 0.1, "eager fp32": 0.2}, first={"fused fp32": 30.0})
    assert round(min(timing.wall_s for timing in machine.time_all()[0].values()), 6) == 0.1


def test_slow_candidates_are_eliminated():
    machine = SimulatedMachine({"fused bf16": 0.05, "eager bf16": 0.06, "eager fp32": 0.4})
    machine.time_all()
    assert machine.ran.count("eager fp32") == 2 < machine.ran.count("eager bf16") == machine.ran.count("fused bf16")


@pytest.mark.parametrize("slowness", [1, 10, 100])
def test_timing_takes_a_second_or_two_passes_each(slowness):
    machine = SimulatedMachine({name: slowness * seconds for name, seconds in CPU_SECONDS.items()})
    machine.time_all()
    assert machine.now <= max(3.0, 2 * sum(machine.seconds.values()) + 1e-6)
    assert len(machine.ran) >= 8


@pytest.mark.parametrize("first", [{}, {"fused fp32": 0.01}], ids=["at once", "later"])
def test_a_failing_candidate_is_out(first):
    machine = SimulatedMachine({"fused fp32": ImportError("no numba"), "eager fp32": 0.2}, first)
    seconds, failures = machine.time_all()
    assert names(seconds) == ["eager fp32"] and names(failures) == ["fused fp32"]


# The choice.


def test_the_fastest_is_chosen_and_all_are_reported(fast_bf16):
    choice = SimulatedMachine({**CPU_SECONDS, "eager bf16": 0.0041}).choose()
    assert choice.candidate == Candidate("eager", "bf16") and choice.notes == []
    assert str(choice) == (
        "backends measured: fused bf16 40 ms, fused fp32 100 ms, eager bf16 4.1 ms, eager fp32 200 ms; "
        "using eager bf16 (--backend and --precision override)"
    )


def test_near_ties_always_choose_the_same_backend(slow_bf16):
    for fused in (0.0999, 0.1001, 0.104):
        assert SimulatedMachine({"fused fp32": fused, "eager fp32": 0.1}).choose().candidate.backend == "fused"
    slower = SimulatedMachine({"fused fp32": 0.106, "eager fp32": 0.1})
    assert slower.choose(with_train(seed=1)).candidate.backend == "fused", "cached"


def test_a_broken_backend_is_replaced_and_noted(fast_bf16):
    broken = ImportError("numba cannot be loaded\nTraceback")
    choice = SimulatedMachine({**CPU_SECONDS, "fused bf16": broken, "fused fp32": broken}).choose()
    assert choice.candidate == Candidate("eager", "bf16")
    assert choice.failures == {f"fused {name}": "numba cannot be loaded" for name in ("bf16", "fp32")}
    assert [note.split(" cannot")[0] for note in choice.notes] == ["fused bf16", "fused fp32"]


def test_eager_is_chosen_where_all_fail(slow_bf16):
    choice = SimulatedMachine(dict.fromkeys(CPU_SECONDS, MemoryError())).choose()
    assert choice.candidate == Candidate("eager", "fp32")
    assert choice.failures == {f"{name} fp32": "MemoryError" for name in ("fused", "eager")}


def test_a_given_backend_that_fails_is_an_error(slow_bf16):
    machine = SimulatedMachine({"fused fp32": ImportError("no numba")})
    with pytest.raises(UsageError, match=r"--backend fused .*no numba") as error:
        machine.choose(with_train(backend="fused"))
    assert error.value.code == "backend-failed"


def test_nothing_is_timed_without_alternatives(fast_bf16):
    machine = SimulatedMachine({})
    choice = machine.choose(device=MPS)
    assert choice == BackendChoice(Candidate("eager", "fp32")) and str(choice).startswith("using eager fp32")
    assert machine.n_tunings == 0 and not cache_folder().exists()


# The cache.


def test_a_second_start_uses_the_cached_choice(fast_bf16):
    first, second = SimulatedMachine(CPU_SECONDS), SimulatedMachine({})
    assert first.choose() == second.choose()
    assert (first.n_tunings, second.n_tunings) == (1, 0)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"\xff", b"[" * 100_000),
        b'{"candidate": "fused int8", "seconds": {"a": 1}, "failures": {}}',
        b'{"candidate": "fused bf16", "seconds": {"fused bf16": "fast"}, "failures": {}}',
        b'{"candidate": "fused bf16", "seconds": [], "failures": {}}',
    ],
)
def test_a_damaged_cache_file_is_replaced(fast_bf16, content):
    SimulatedMachine(CPU_SECONDS).choose()
    (file,) = (cache_folder() / autotune_cache.FOLDER).iterdir()
    file.write_bytes(content)
    again = SimulatedMachine({**CPU_SECONDS, "eager fp32": 0.001})
    assert again.choose().candidate == Candidate("eager", "fp32")
    assert json.loads(file.read_text())["candidate"] == "eager fp32"


def test_an_unwritable_cache_means_tuning_every_time(fast_bf16, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "file" / "cache"))
    machine = SimulatedMachine(CPU_SECONDS)
    assert machine.choose().candidate == machine.choose().candidate and machine.n_tunings == 2


def test_the_cache_key_covers_machine_code_and_workload(slow_bf16, monkeypatch):
    def is_cached(config=CONFIG, vocab_size=VOCAB_SIZE):
        machine = SimulatedMachine(CPU_SECONDS)
        machine.choose(config, vocab_size=vocab_size)
        return machine.n_tunings == 0

    def with_model(**changes):
        return replace(CONFIG, model=replace(CONFIG.model, **changes))

    assert not is_cached() and is_cached()
    assert is_cached(with_train(seed=3, learning_rate=1e-4, epochs=7))
    assert is_cached(with_model(dropout=0.1, n_layer=9))
    for other in ({"d_model": 32}, {"n_head": 4}, {"block_size": 16}, {"dropout": 0.0}, {"architecture": "qwen3"}):
        assert not is_cached(with_model(**other)), other
    assert not is_cached(vocab_size=12) and not is_cached(with_train(backend="fused"))
    for name in ("processor_name", "code_fingerprint", "describe_device"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(autotune_cache, name, lambda *_: "another")
            assert not is_cached(), name
    monkeypatch.setattr(torch, "__version__", "another")
    assert not is_cached()


@pytest.mark.parametrize(("failure", "n_tunings"), [(OSError("busy"), 2), (NotImplementedError("odd heads"), 1)])
def test_only_permanent_failures_are_cached(slow_bf16, failure, n_tunings):
    machine = SimulatedMachine({"fused fp32": failure, "eager fp32": 0.2})
    choices = [machine.choose() for _ in range(2)]
    assert choices[0] == choices[1] and choices[0].notes and machine.n_tunings == n_tunings


def test_a_cached_compiled_backend_is_tried_again(fast_bf16, monkeypatch):
    monkeypatch.setattr(Workload, "cache_file", lambda workload, candidates: cache_folder() / "one.json")
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: torch.no_grad())
    monkeypatch.setattr(autotune, "release_memory", lambda device: None)
    seconds = {"eager bf16": 0.3, "compiled bf16": 0.1, "cuda_graph bf16": 0.2}
    assert SimulatedMachine(seconds).choose(LONG, CUDA).candidate.backend == "compiled"
    again = SimulatedMachine(seconds)
    assert again.choose(LONG, CUDA).candidate.backend == "compiled" and again.ran == ["compiled bf16"]
    broken = SimulatedMachine({**seconds, "compiled bf16": RuntimeError("no compiler")})
    choice = broken.choose(LONG, CUDA)
    assert choice.candidate.backend == "cuda_graph" and choice.failures == {"compiled bf16": "no compiler"}


class SharedMachine(SimulatedMachine):
    """Other programs take the core for most of the first candidate's passes."""

    def __init__(self, seconds, monkeypatch):
        super().__init__(seconds)
        self.processor_s = self.waited_s = 0.0
        monkeypatch.setattr(autotune, "waited_for_cores_s", lambda: self.waited_s)
        monkeypatch.setattr(autotune.time, "process_time", lambda: self.processor_s)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def run(self, name):
        super().run(name)
        waits_s = 10 * self.seconds[name] if name == next(iter(self.seconds)) else 0.0
        self.now, self.waited_s = self.now + waits_s, self.waited_s + waits_s
        self.processor_s += self.seconds[name]


def test_on_a_shared_machine_processor_time_decides_and_is_not_cached(fast_bf16, monkeypatch):
    machine = SharedMachine(CPU_SECONDS, monkeypatch)
    for n_tunings in (1, 2):
        choice = machine.choose()
        assert str(choice.candidate) == "fused bf16" and machine.n_tunings == n_tunings
        assert {name: round(seconds, 6) for name, seconds in choice.seconds.items()} == CPU_SECONDS


# Real trials.


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_real_trials_keep_the_random_state(fast_bf16, architecture):
    config = replace(CONFIG, model=replace(CONFIG.model, architecture=architecture))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    choice = choose_backend(config, VOCAB_SIZE, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(choice.seconds) == set(CPU_SECONDS), choice.notes
    assert choice == choose_backend(config, VOCAB_SIZE, CPU)


def test_the_cpu_workload_is_a_small_part_of_the_step(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    workload = Workload.for_run(RunConfig(), 256, CPU)
    assert workload.config.model == replace(RunConfig().model, n_layer=2)
    assert (workload.n_sequences, workload.vocab_size) == (8, 256)
    assert Workload.for_run(with_train(batch_size=1), 256, CPU).n_sequences == 1
    gpu = Workload.for_run(RunConfig(), 256, CUDA)
    assert (gpu.config, gpu.n_sequences) == (RunConfig(), 64)


def test_each_device_type_has_its_code_fingerprint():
    cpu, cuda = map(autotune_cache.code_fingerprint, ("cpu", "cuda"))
    assert len(cpu) == len(cuda) == 64 and cpu != cuda
