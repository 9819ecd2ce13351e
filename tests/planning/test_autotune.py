"""The fastest way to compute a step is found by trying: with candidates whose seconds are made up, never by a clock."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from tiny_gpt import device
from tiny_gpt.config import ModelConfig, RunConfig, TrainConfig
from tiny_gpt.errors import UsageError
from tiny_gpt.files import cache_folder
from tiny_gpt.planning import autotune
from tiny_gpt.planning.autotune import Trial, backend_candidates, choose_backend, race
from tiny_gpt.planning.types import Candidate

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
CONFIG = RunConfig(ModelConfig(n_layer=3, n_head=2, d_model=16, d_ff=32, block_size=8), train=TrainConfig(batch_size=4))
LONG = replace(CONFIG, train=replace(CONFIG.train, steps=10**12))
VOCAB_SIZE = 11


def with_train(**changes):
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fast_bf16(monkeypatch):
    monkeypatch.setattr(device, "_bf16_is_faster", lambda device: device.type != "mps")


@pytest.fixture
def slow_bf16(monkeypatch):
    monkeypatch.setattr(device, "_bf16_is_faster", lambda device: False)


class Contest:
    """Stands for the machine: candidates take the seconds they are given, or raise; a clock goes on as they run."""

    def __init__(self, seconds, first=None):
        self.seconds, self.first = seconds, first or {}
        self.now, self.ran = 0.0, []
        self.n_made = 0

    def clock(self):
        return self.now

    def make(self, trial, found):
        self.n_made += 1
        return {candidate: lambda candidate=candidate: self.run(str(candidate)) for candidate in found}

    def run(self, name):
        time = self.first.get(name) if name not in self.ran else None
        time = self.seconds[name] if time is None else time
        self.ran.append(name)
        if isinstance(time, Exception):
            raise time
        self.now += next(time) if isinstance(time, itertools.cycle) else time

    def choose(self, config=CONFIG, device=CPU, vocab_size=VOCAB_SIZE):
        return choose_backend(config, vocab_size, device, self.make, self.clock)

    def race(self):
        return race(self.make(None, [Candidate(*name.split()) for name in self.seconds]), self.clock)


ALL_OF_A_CPU = {"fused bf16": 0.04, "fused fp32": 0.1, "eager bf16": 0.06, "eager fp32": 0.2}


def names(found):
    return [str(candidate) for candidate in found]


# --- who takes part ---


def test_every_path_in_every_precision_that_is_not_slow_for_sure_takes_part(fast_bf16):
    assert names(backend_candidates(CONFIG, CPU)) == list(ALL_OF_A_CPU)
    assert names(backend_candidates(LONG, CUDA)) == ["cuda_graph bf16", "eager bf16", "compiled bf16"]
    assert names(backend_candidates(CONFIG, MPS)) == ["eager fp32"]


def test_where_bf16_products_are_slow_no_step_is_tried_with_them(slow_bf16):
    """A single step may take minutes then."""
    assert names(backend_candidates(CONFIG, CPU)) == ["fused fp32", "eager fp32"]
    assert names(backend_candidates(LONG, CUDA)) == ["cuda_graph fp32", "eager fp32", "compiled fp32"]


def test_flags_leave_what_they_name(fast_bf16, monkeypatch):
    assert names(backend_candidates(with_train(backend="eager"), CPU)) == ["eager bf16", "eager fp32"]
    assert names(backend_candidates(with_train(precision="fp32"), CPU)) == ["fused fp32", "eager fp32"]
    assert names(backend_candidates(with_train(backend="compiled", precision="fp32"), MPS)) == ["compiled fp32"]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert names(backend_candidates(with_train(backend="cuda_graph", precision="bf16"), CUDA)) == ["cuda_graph bf16"]


def test_a_path_that_the_device_lacks_is_refused_with_those_that_it_has(fast_bf16):
    with pytest.raises(
        UsageError, match=r"^--backend fused: not on cuda; there are cuda_graph, eager, compiled \(or auto\)$"
    ):
        backend_candidates(with_train(backend="fused"), CUDA)
    with pytest.raises(
        UsageError, match=r"^--backend cuda_graph: not on cpu; there are fused, eager, compiled \(or auto\)$"
    ):
        backend_candidates(with_train(backend="cuda_graph"), CPU)


def test_a_run_too_short_to_win_back_the_compiling_does_not_begin_with_it(fast_bf16):
    at_once = ["cuda_graph bf16", "eager bf16"]
    for short in (CONFIG, with_train(for_="9m"), with_train(for_="10h", deterministic=True)):
        assert names(backend_candidates(short, CUDA)) == at_once
    for long in (LONG, with_train(for_="10m")):
        assert names(backend_candidates(long, CUDA)) == [*at_once, "compiled bf16"]
    assert names(backend_candidates(with_train(backend="compiled"), CUDA)) == ["compiled bf16"]


def test_one_slow_product_is_enough_to_tell_that_bf16_is_slow(monkeypatch):
    """On a CPU without units for it each may take seconds."""
    seconds = itertools.count(step=2 * device.PATIENCE_S)
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(seconds))
    device._product_seconds(torch.bfloat16)
    assert next(seconds) == pytest.approx(2 * 2 * device.PATIENCE_S), "the clock was read before and after one product"


def test_this_processor_has_a_name():
    assert device.processor_name() == device.processor_name() != ""


def test_a_person_is_told_before_a_compiler_takes_its_time(fast_bf16):
    assert autotune.uses_torch_compile(LONG, CUDA) and autotune.uses_torch_compile(with_train(backend="compiled"), CPU)
    assert not autotune.uses_torch_compile(LONG, CPU) and not autotune.uses_torch_compile(
        with_train(backend="fused"), CUDA
    )


# --- the race ---


def test_the_fastest_of_several_passes_counts_and_all_take_turns():
    contest = Contest({"fused fp32": itertools.cycle([0.9, 0.1, 0.2]), "eager fp32": 0.11})
    seconds, failures = contest.race()
    assert {str(name): round(its, 6) for name, its in seconds.items()} == {"fused fp32": 0.1, "eager fp32": 0.11}
    assert failures == {}
    assert contest.ran[:4] == ["fused fp32", "eager fp32"] * 2


def test_what_only_the_first_pass_pays_for_is_not_held_against_a_candidate():
    contest = Contest({"fused fp32": 0.1, "eager fp32": 0.2}, first={"fused fp32": 30.0})
    assert round(min(contest.race()[0].values()), 6) == 0.1


def test_those_that_cannot_win_any_more_are_not_waited_for():
    contest = Contest({"fused bf16": 0.05, "eager bf16": 0.06, "eager fp32": 0.4})
    contest.race()
    assert contest.ran.count("eager fp32") == 2 < contest.ran.count("eager bf16") == contest.ran.count("fused bf16")


@pytest.mark.parametrize("slowness", [1, 10, 100])
def test_a_choice_takes_about_a_second_or_two_passes_of_each(slowness):
    contest = Contest({name: slowness * its for name, its in ALL_OF_A_CPU.items()})
    contest.race()
    assert contest.now <= max(3.0, 2 * sum(contest.seconds.values()) + 1e-6)
    assert len(contest.ran) >= 8


@pytest.mark.parametrize("first", [{}, {"fused fp32": 0.01}], ids=["at once", "later"])
def test_a_candidate_that_raises_is_out(first):
    contest = Contest({"fused fp32": ImportError("no numba"), "eager fp32": 0.2}, first)
    seconds, failures = contest.race()
    assert names(seconds) == ["eager fp32"] and names(failures) == ["fused fp32"]


# --- the choice ---


def test_the_fastest_is_taken_and_told_with_the_others(fast_bf16):
    choice = Contest({**ALL_OF_A_CPU, "eager bf16": 0.0041}).choose()
    assert choice.candidate == Candidate("eager", "bf16") and choice.notes == []
    assert str(choice) == (
        "backends measured: fused bf16 40 ms, fused fp32 100 ms, eager bf16 4.1 ms, eager fp32 200 ms; "
        "using eager bf16 (--backend and --precision override)"
    )


def test_of_those_as_good_as_equal_the_same_one_is_taken_every_time(slow_bf16):
    for fused in (0.0999, 0.1001, 0.104):
        assert Contest({"fused fp32": fused, "eager fp32": 0.1}).choose().candidate.backend == "fused"
    assert Contest({"fused fp32": 0.106, "eager fp32": 0.1}).choose(with_train(seed=1)).candidate.backend == "fused", (
        "kept"
    )


def test_where_a_path_is_broken_another_is_taken_and_a_note_tells(fast_bf16):
    broken = ImportError("numba cannot be loaded\nTraceback")
    choice = Contest({**ALL_OF_A_CPU, "fused bf16": broken, "fused fp32": broken}).choose()
    assert choice.candidate == Candidate("eager", "bf16")
    assert choice.notes == [f"fused {name} cannot be used here: numba cannot be loaded" for name in ("bf16", "fp32")]


def test_where_nothing_can_be_measured_a_run_goes_the_plain_way(slow_bf16):
    choice = Contest(dict.fromkeys(ALL_OF_A_CPU, MemoryError())).choose()
    assert choice.candidate == Candidate("eager", "fp32")
    assert choice.notes == [f"{name} fp32 cannot be used here: MemoryError" for name in ("fused", "eager")]


def test_a_path_that_was_asked_for_and_is_broken_is_an_error(slow_bf16):
    contest = Contest({"fused fp32": ImportError("no numba")})
    with pytest.raises(UsageError, match=r"^--backend fused cannot be used here: no numba$"):
        contest.choose(with_train(backend="fused"))


def test_where_there_is_no_choice_nothing_is_tried(fast_bf16):
    contest = Contest({})
    choice = contest.choose(device=MPS)
    assert choice.candidate == Candidate("eager", "fp32") and contest.n_made == 0 and not cache_folder().exists()
    assert str(choice) == "using eager fp32: the settings allow no other backend"


# --- the next start ---


def test_a_second_start_takes_what_the_first_has_found_without_trying(fast_bf16):
    first, second = Contest(ALL_OF_A_CPU), Contest({})
    assert first.choose() == second.choose()
    assert (first.n_made, second.n_made) == (1, 0)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"\xff", b"[" * 100_000),
        b'{"candidate": "fused int8", "seconds": {"a": 1}, "failures": {}}',
        b'{"candidate": "fused bf16", "seconds": {"fused bf16": "fast"}, "failures": {}}',
        b'{"candidate": "fused bf16", "seconds": [], "failures": {}}',
    ],
)
def test_a_damaged_cache_is_measured_again(fast_bf16, content):
    Contest(ALL_OF_A_CPU).choose()
    (kept,) = (cache_folder() / "backends").iterdir()
    kept.write_bytes(content)
    again = Contest({**ALL_OF_A_CPU, "eager fp32": 0.001})
    assert again.choose().candidate == Candidate("eager", "fp32")
    assert json.loads(kept.read_text())["candidate"] == "eager fp32"


def test_without_a_cache_it_is_measured_each_time(fast_bf16, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "file" / "cache"))
    contest = Contest(ALL_OF_A_CPU)
    assert contest.choose().candidate == contest.choose().candidate and contest.n_made == 2


def test_what_was_found_holds_for_the_same_machine_code_and_shape_only(slow_bf16, monkeypatch):
    def is_kept(config=CONFIG, vocab_size=VOCAB_SIZE):
        contest = Contest(ALL_OF_A_CPU)
        contest.choose(config, vocab_size=vocab_size)
        return contest.n_made == 0

    def with_model(**changes):
        return replace(CONFIG, model=replace(CONFIG.model, **changes))

    assert not is_kept() and is_kept()
    assert is_kept(with_train(seed=3, learning_rate=1e-4, epochs=7)) and is_kept(with_model(dropout=0.1, n_layer=9))
    for other in ({"d_model": 32}, {"n_head": 4}, {"block_size": 16}, {"dropout": 0.0}, {"architecture": "qwen3"}):
        assert not is_kept(with_model(**other)), other
    assert not is_kept(vocab_size=12) and not is_kept(with_train(backend="fused"))
    for name in ("processor_name", "_code", "describe_device"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(autotune, name, lambda *_: "another")
            assert not is_kept(), name
    monkeypatch.setattr(torch, "__version__", "another")
    assert not is_kept()


def test_a_failure_that_may_pass_is_not_kept_and_one_for_good_is(slow_bf16):
    for failure, n_tried in ((OSError("busy"), 2), (NotImplementedError("odd heads"), 1)):
        contest = Contest({"fused fp32": failure, "eager fp32": 0.2})
        choices = [contest.choose(with_train(batch_size=n_tried)) for _ in range(2)]
        assert choices[0] == choices[1] and choices[0].notes and contest.n_made == n_tried


def test_what_has_to_be_compiled_anew_is_tried_before_the_run_relies_on_it(fast_bf16, monkeypatch):
    monkeypatch.setattr(Trial, "cache_file", lambda trial, found: cache_folder() / "one.json")
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: torch.no_grad())
    monkeypatch.setattr(autotune, "release_memory", lambda device: None)
    seconds = {"eager bf16": 0.3, "compiled bf16": 0.1, "cuda_graph bf16": 0.2}
    assert Contest(seconds).choose(LONG, CUDA).candidate.backend == "compiled"
    again = Contest(seconds)
    assert again.choose(LONG, CUDA).candidate.backend == "compiled" and again.ran == ["compiled bf16"]
    broken = Contest({**seconds, "compiled bf16": RuntimeError("no compiler")})
    choice = broken.choose(LONG, CUDA)
    assert choice.candidate.backend == "cuda_graph" and choice.notes == [
        "compiled bf16 cannot be used here: no compiler"
    ]


# --- real trials ---


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_real_trials_leave_random_numbers_as_they_were(fast_bf16, architecture):
    config = replace(CONFIG, model=replace(CONFIG.model, architecture=architecture))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    choice = choose_backend(config, VOCAB_SIZE, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(choice.seconds) == set(ALL_OF_A_CPU), choice.notes
    assert choice == choose_backend(config, VOCAB_SIZE, CPU)


def test_a_trial_on_a_cpu_is_a_small_part_of_the_runs_own_step(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    trial = Trial.of(RunConfig(), 256, CPU)
    assert trial.config.model == replace(RunConfig().model, n_layer=2)
    assert (trial.n_blocks, trial.vocab_size) == (8, 256)
    assert Trial.of(with_train(batch_size=1), 256, CPU).n_blocks == 1
    gpu = Trial.of(RunConfig(), 256, CUDA)
    assert (gpu.config, gpu.n_blocks) == (RunConfig(), 64)


def test_the_code_that_computes_has_a_fingerprint():
    assert len(autotune._code("cpu")) == len(autotune._code("cuda")) == 64 and autotune._code("cpu") != autotune._code(
        "cuda"
    )
