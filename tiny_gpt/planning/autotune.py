"""Autotuning: time every backend and precision that could compute a training step here, and choose the fastest.

A candidate is a backend (tiny_gpt/backends.py) in a precision. On a CPU, one forward and backward pass of two layers on
a few sequences is timed, so that tuning takes a second or two; on a GPU, whole training steps are. The choice is cached
(autotune_cache.py) for the next start. The random state is left untouched.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from tiny_gpt.backends import BACKENDS
from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.device import PRECISIONS, candidate_precisions, is_out_of_memory, release_memory, synchronize
from tiny_gpt.distributed.ranks import current_ranks
from tiny_gpt.errors import UsageError, first_line
from tiny_gpt.host.cpu_time import waited_for_cores_s
from tiny_gpt.model import gpt
from tiny_gpt.model.shapes import n_multiplied
from tiny_gpt.planning import autotune_cache
from tiny_gpt.planning.step_benchmark import StepBenchmark
from tiny_gpt.planning.types import BackendChoice, Candidate
from tiny_gpt.training.budget import requested_seconds
from tiny_gpt.training.micro_batches import micro_batch_size

# Backends that `auto` tries on each kind of device. Where several are about equally fast the first one wins, so that
# timing noise does not change the choice from one start to the next.
AUTO_BACKENDS = {"cpu": ("fused", "eager"), "cuda": ("cuda_graph", "eager", "compiled"), "mps": ("eager",)}
TIE_RATIO = 1.05
# torch.compile is slower than `fused` on CPUs and has failed on MPS (pytorch#161905), so there it needs --backend.
EXPLICIT_BACKENDS = ("compiled",)
# torch.compile takes about a minute. Shorter runs do not win that back; nor do runs of fewer floating-point operations,
# which take a large GPU minutes and a small one an hour.
MIN_S_TO_COMPILE, MIN_FLOPS_TO_COMPILE = 600.0, 1e17
# The CPU workload: just enough to keep all threads busy.
WORKLOAD_LAYERS, WORKLOAD_TOKENS_PER_THREAD = 2, 512
# Timing stops after this long or this many rounds, whichever comes first.
TIMING_BUDGET_S, MAX_ROUNDS = 1.0, 5
# A candidate this many times slower than the fastest after two passes is not timed again.
ELIMINATION_RATIO = 1.5
# Where each thread has waited for a core for more than this share of the time, other programs computed too. A pass then
# takes up to ten times as long as another one, so the processor time decides, and the next start measures again.
MAX_WAITING_SHARE = 0.1

Trials = Mapping[Candidate, Callable[[], None]]
"""For each candidate a function that runs the workload once."""


def backend_candidates(config: RunConfig, device: torch.device) -> list[Candidate]:
    """The candidates that the settings allow on `device`; raises UsageError where there are none."""
    train = config.train
    precisions = candidate_precisions(train.precision, device)
    backends = AUTO_BACKENDS[device.type]
    backends = tuple(backend for backend in backends if not why_unsuitable(backend, train))
    if train.backend != "auto":
        if reason := why_unsuitable(train.backend, train):
            message = f"--backend {train.backend} cannot be used {reason}; leave it out, or give --backend eager"
            raise UsageError(message, code="backend-unsuitable")
        possible = list(dict.fromkeys((*backends, *EXPLICIT_BACKENDS)))
        if train.backend not in possible:
            raise UsageError(
                f"--backend {train.backend} does not exist on {device.type}; choose {', '.join(possible)} or auto",
                code="backend-not-on-device",
            )
        backends = (train.backend,)
    elif train.deterministic or not _is_worth_compiling(config):
        backends = tuple(backend for backend in backends if backend != "compiled")
    return [Candidate(backend, precision) for backend in backends for precision in precisions]


def why_unsuitable(backend: str, train: TrainConfig) -> str:
    """What in a run excludes a backend, and why, as "with --shard: ..."; "" if nothing does."""
    if train.recompute and backend == "cuda_graph":
        return "with --recompute: it records no random state that could be set back"
    if train.recompute and backend == "fused":
        return "with --recompute: it has a backward pass of its own"
    if train.uses_lora and backend != "eager":
        return "with --lora: it computes the plain network only"
    if train.shard and backend != "eager":
        return "with --shard: it reads all weights at once, and they are collected block by block"
    if backend == "cuda_graph" and (train.exact or not current_ranks().is_alone):
        where = "with --exact" if train.exact else "on several devices"
        return f"{where}: gradients are added up between two parts of a step that it records as one"
    return ""


def _is_worth_compiling(config: RunConfig) -> bool:
    """Whether the run is long enough to win back the time that torch.compile takes."""
    model, train = config.model, config.train
    asked_s = requested_seconds(train, time.time(), time.time())
    if asked_s is not None:
        return asked_s >= MIN_S_TO_COMPILE
    n_tokens = train.total_steps * train.batch_size * model.block_size
    return 6 * n_tokens * n_multiplied(model, vocab_size=0) >= MIN_FLOPS_TO_COMPILE


def uses_torch_compile(config: RunConfig, device: torch.device) -> bool:
    """Whether autotuning, or the first step after it, runs torch.compile, which takes about a minute."""
    with contextlib.suppress(UsageError):
        return any(candidate.backend == "compiled" for candidate in backend_candidates(config, device))
    return False


def must_compile_kernels(config: RunConfig, device: torch.device) -> bool:
    """Whether the first step has to compile the numba kernels, which setup normally does in advance."""
    with contextlib.suppress(UsageError, ImportError):
        if any(candidate.backend == "fused" for candidate in backend_candidates(config, device)):
            from tiny_gpt.kernels.precompile import is_training_compiled

            return not is_training_compiled()
    return False


def choose_backend(
    config: RunConfig,
    vocab_size: int,
    device: torch.device,
    make_trials: Callable[["Workload", list[Candidate]], Trials] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> BackendChoice:
    """The fastest candidate, from the cache of an earlier start or measured now.

    Tests pass `make_trials` and `clock` to simulate a machine. Raises UsageError if the backend given by --backend does
    not exist here or fails.
    """
    candidates = backend_candidates(config, device)
    if len(candidates) == 1 and candidates[0].backend == "eager":  # eager works everywhere
        return BackendChoice(candidates[0])
    workload = Workload.for_run(config, vocab_size, device)
    cache_file = workload.cache_file(candidates)
    make_trials = make_trials or Workload.trials
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        cached = autotune_cache.read_choice(cache_file, candidates)
        # torch.compile runs again in this process. Should it fail, better here than in the first step.
        if cached and (cached.candidate.backend != "compiled" or _works(make_trials(workload, [cached.candidate]))):
            return cached
        start, waited_s = clock(), waited_for_cores_s()
        timings, failures = time_candidates(make_trials(workload, candidates), clock)
        waited_s = (waited_for_cores_s() - waited_s) / torch.get_num_threads()
        is_shared = device.type == "cpu" and waited_s > MAX_WAITING_SHARE * (clock() - start)
    if uses_torch_compile(config, device):
        torch.compiler.reset()  # frees the memory of compiled code; the run reloads its own from torch's disk cache
    release_memory(device)
    seconds = {each: timing.processor_s if is_shared else timing.wall_s for each, timing in timings.items()}
    choice = _decide(config.train, candidates, seconds, failures)
    # NotImplementedError is permanent. Any other failure may have passed by the next start, so nothing is cached.
    if not is_shared and all(isinstance(failure, NotImplementedError) for failure in failures.values()):
        autotune_cache.write_choice(cache_file, choice)
    return choice


@dataclass(frozen=True)
class Workload:
    """The model and the micro-batch that candidates are timed on."""

    config: RunConfig
    vocab_size: int
    n_sequences: int
    device: torch.device

    @classmethod
    def for_run(cls, config: RunConfig, vocab_size: int, device: torch.device) -> "Workload":
        """A part of the run's own step on a CPU; the whole step on a GPU, which is fast enough for it and would
        otherwise have to compile for a second shape."""
        model, train = config.model, config.train
        n_sequences = micro_batch_size(train.batch_size, train.grad_accum_steps, model.block_size, device)
        if device.type == "cpu":
            model = replace(model, n_layer=min(WORKLOAD_LAYERS, model.n_layer))
            enough = math.ceil(WORKLOAD_TOKENS_PER_THREAD * torch.get_num_threads() / model.block_size)
            n_sequences = min(n_sequences, enough)
        return cls(replace(config, model=model), vocab_size, n_sequences, device)

    def trials(self, candidates: list[Candidate]) -> Trials:
        """A forward and backward pass for each candidate; on a GPU, a whole training step."""
        if self.device.type != "cpu":
            return {candidate: StepTrial(self, candidate) for candidate in candidates}
        model = gpt.GPT(self.config.model, self.vocab_size).train()
        ids_BT, targets_BT = torch.randint(self.vocab_size, (2, self.n_sequences, self.config.model.block_size))

        def run_pass(candidate: Candidate) -> None:
            model.compute_dtype = PRECISIONS[candidate.precision]
            model.zero_grad(set_to_none=True)
            BACKENDS[candidate.backend].loss(model, ids_BT, targets_BT).backward()

        return {candidate: functools.partial(run_pass, candidate) for candidate in candidates}

    def cache_file(self, candidates: list[Candidate]) -> Path:
        """The cache file for a choice among `candidates` on this workload and machine."""
        model = self.config.model
        # Neither the dropout rate nor the base of the rotary angles changes the speed.
        shape = asdict(model) | {"dropout": model.dropout > 0, "rope_theta": None}
        optimizer = self.config.train.optimizer if self.device.type != "cpu" else None
        return autotune_cache.cache_file(self.device, candidates, [shape, self.vocab_size, self.n_sequences, optimizer])


class StepTrial:
    """A candidate's whole training step on a GPU. The first call includes all one-time work, such as compiling."""

    def __init__(self, workload: Workload, candidate: Candidate) -> None:
        train = replace(workload.config.train, **asdict(candidate))
        config = replace(workload.config, train=train)
        self._make = functools.partial(StepBenchmark, config, workload.vocab_size, workload.device)
        self._benchmark: StepBenchmark | None = None

    def __call__(self) -> None:
        if self._benchmark is None:
            benchmark = self._make()
            benchmark.warm_up()
            if benchmark.cuda_graph is not None and (problem := benchmark.cuda_graph.problem):
                raise problem
            self._benchmark = benchmark
        self._benchmark.step()
        synchronize(self._benchmark.model.device)


class Timing(NamedTuple):
    """Of a candidate's passes: the shortest time, and the least processor time of all threads together."""

    wall_s: float = math.inf
    processor_s: float = math.inf


def time_candidates(
    trials: Trials, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[Candidate, Timing], dict[Candidate, Exception]]:
    """The timing of each candidate, and the exceptions of those that failed.

    Candidates take turns, so that a machine that is briefly busy slows them all. A warm-up pass for each pays for
    one-time work. After the first timed round, only candidates that may still be the fastest go on.
    """
    timings: dict[Candidate, Timing] = {}
    failures: dict[Candidate, Exception] = {}

    def run(candidate: Candidate) -> None:
        start, processor_start = clock(), time.process_time()
        try:
            trials[candidate]()
        except Exception as failure:  # compilers and drivers raise all kinds
            failures[candidate] = failure.with_traceback(None)  # a traceback would keep tensors alive
            timings.pop(candidate, None)
        else:
            best = timings.get(candidate, Timing())
            processor_s = min(best.processor_s, time.process_time() - processor_start)
            timings[candidate] = Timing(min(best.wall_s, clock() - start), processor_s)

    for candidate in trials:
        run(candidate)
    start = clock()
    for round_ in range(MAX_ROUNDS):
        fastest_s = min((timing.wall_s for timing in timings.values()), default=0.0)
        limit = math.inf if round_ == 0 else ELIMINATION_RATIO * fastest_s
        for candidate in [candidate for candidate, timing in timings.items() if timing.wall_s <= limit]:
            run(candidate)
        if clock() - start > TIMING_BUDGET_S:
            break
    return timings, failures


def _decide(
    train: TrainConfig,
    candidates: list[Candidate],
    seconds: dict[Candidate, float],
    failures: dict[Candidate, Exception],
) -> BackendChoice:
    """The first candidate within TIE_RATIO of the fastest; where all failed, eager, or UsageError for --backend."""
    reported = failures
    if seconds:  # all models were in memory together, so running out says nothing about one alone
        reported = {candidate: failure for candidate, failure in failures.items() if not is_out_of_memory(failure)}
    reasons = {str(candidate): first_line(failure)[:200] for candidate, failure in reported.items()}
    if not seconds:
        if train.backend != "auto":
            raise UsageError(
                f"--backend {train.backend} cannot be used here: {'; '.join(dict.fromkeys(reasons.values()))}",
                code="backend-failed",
            )
        return BackendChoice(Candidate("eager", candidates[0].precision), {}, reasons)
    limit = TIE_RATIO * min(seconds.values())
    chosen = next(candidate for candidate in candidates if seconds.get(candidate, math.inf) <= limit)
    return BackendChoice(chosen, {str(candidate): fastest for candidate, fastest in seconds.items()}, reasons)


def _works(trials: Trials) -> bool:
    try:
        for run in trials.values():
            run()
    except Exception:  # as in time_candidates
        return False
    return True
