"""How a step is computed: the fastest way that this machine has, found by trying.

A candidate is a path (how `GPT.loss` is computed, and whether that is recorded) in a precision. On a processor each
one's forward and backward pass is timed with two layers and a few blocks of the run's own shape, so that it takes a
second or two; on a GPU whole steps are. What was found is kept in the user's cache for the next start. The random
numbers of a run stay as they were.
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tiny_gpt.backends import BACKENDS
from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.device import (
    PRECISIONS,
    candidate_precisions,
    describe_device,
    is_out_of_memory,
    processor_name,
    release_memory,
    synchronize,
)
from tiny_gpt.errors import OutOfResourcesError, UsageError
from tiny_gpt.files import atomic_write, cache_folder, sha256_of, sha256_of_json
from tiny_gpt.model import gpt
from tiny_gpt.model.shapes import n_multiplied
from tiny_gpt.planning.step_benchmark import StepBenchmark
from tiny_gpt.planning.types import BackendChoice, Candidate
from tiny_gpt.training.budget import requested_seconds
from tiny_gpt.training.step import micro_batch_size

# What auto tries on each kind of device; among those that are as good as equal the first is taken.
AUTO_BACKENDS = {"cpu": ("fused", "eager"), "cuda": ("cuda_graph", "eager", "compiled"), "mps": ("eager",)}
AS_GOOD_AS_EQUAL = 1.05
# torch.compile works elsewhere too, when asked for: slower than fused on a CPU, with failures on MPS (pytorch#161905).
ON_REQUEST = ("compiled",)
# Compiling takes about a minute, which a shorter run does not win back; nor one of fewer multiplications and additions,
# which take a large GPU minutes and a small one an hour.
MIN_S_TO_COMPILE, MIN_FLOPS_TO_COMPILE = 600.0, 1e17
# A trial on a CPU: enough to keep it busy, and no more.
TRIAL_LAYERS, TRIAL_TOKENS_PER_THREAD = 2, 512
BUDGET_S, MAX_ROUNDS = 1.0, 5
# So many times slower than the fastest in its first two passes is out.
OUT_OF_REACH = 1.5


Trials = Mapping[Candidate, Callable[[], None]]


def backend_candidates(config: RunConfig, device: torch.device) -> list[Candidate]:
    """Those that the settings leave on `device`. Raises UsageError where they leave none."""
    train = config.train
    precisions = candidate_precisions(train.precision, device)
    paths = AUTO_BACKENDS[device.type]
    if train.backend != "auto":
        possible = list(dict.fromkeys((*paths, *ON_REQUEST)))
        if train.backend not in possible:
            raise UsageError(
                f"--backend {train.backend}: not on {device.type}; there are {', '.join(possible)} (or auto)"
            )
        paths = (train.backend,)
    elif train.deterministic or not _is_long(config):
        paths = tuple(path for path in paths if path != "compiled")
    return [Candidate(path, precision) for path in paths for precision in precisions]


def _is_long(config: RunConfig) -> bool:
    """Whether what compiling takes comes in again."""
    model, train = config.model, config.train
    asked_s = requested_seconds(train, time.time(), time.time())
    if asked_s is not None:
        return asked_s >= MIN_S_TO_COMPILE
    n_tokens = train.total_steps * train.batch_size * model.block_size
    return 6 * n_tokens * n_multiplied(model, vocab_size=0) >= MIN_FLOPS_TO_COMPILE


def uses_torch_compile(config: RunConfig, device: torch.device) -> bool:
    """Whether choosing, or the first step afterwards, takes torch's compiler a minute."""
    with contextlib.suppress(UsageError):
        return any(candidate.backend == "compiled" for candidate in backend_candidates(config, device))
    return False


def must_compile_kernels(config: RunConfig, device: torch.device) -> bool:
    """Whether the first step takes numba a while, which set-up else does beforehand."""
    with contextlib.suppress(UsageError, ImportError):
        if any(candidate.backend == "fused" for candidate in backend_candidates(config, device)):
            from tiny_gpt.kernels.precompile import is_training_compiled

            return not is_training_compiled()
    return False


def choose_backend(
    config: RunConfig,
    vocab_size: int,
    device: torch.device,
    make_trials: Callable[["Trial", list[Candidate]], Trials] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> BackendChoice:
    """The fastest candidate, as it is known from an earlier start or as it is measured now.

    Raises UsageError for a path that was asked for and cannot be used.
    """
    found = backend_candidates(config, device)
    if len(found) == 1 and found[0].backend == "eager":  # which runs everywhere
        return BackendChoice(found[0])
    trial = Trial.of(config, vocab_size, device)
    place = trial.cache_file(found)
    make_trials = make_trials or Trial.steps
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        known = _read(place, found)
        # The run compiles in any case; here a failure is no harm yet.
        if known and (known.candidate.backend != "compiled" or _runs(make_trials(trial, [known.candidate]))):
            return known
        seconds, failures = race(make_trials(trial, found), clock)
    if uses_torch_compile(config, device):
        torch.compiler.reset()  # frees what the others took; the run finds its code on the disk
    release_memory(device)
    choice = _settle(config.train, found, seconds, failures)
    if all(isinstance(failure, NotImplementedError) for failure in failures.values()):  # others may pass
        _write(place, choice)
    return choice


@dataclass(frozen=True)
class Trial:
    """The model and the amount of text that candidates are tried with."""

    config: RunConfig
    vocab_size: int
    n_blocks: int
    device: torch.device

    @classmethod
    def of(cls, config: RunConfig, vocab_size: int, device: torch.device) -> "Trial":
        """For a run. A GPU is quick enough to try the whole of it, and then need not compile another shape."""
        model, train = config.model, config.train
        n_blocks = micro_batch_size(train.batch_size, train.grad_accum_steps, model.block_size, device)
        if device.type == "cpu":
            model = replace(model, n_layer=min(TRIAL_LAYERS, model.n_layer))
            n_blocks = min(n_blocks, math.ceil(TRIAL_TOKENS_PER_THREAD * torch.get_num_threads() / model.block_size))
        return cls(replace(config, model=model), vocab_size, n_blocks, device)

    def steps(self, found: list[Candidate]) -> Trials:
        """For each candidate its forward and backward pass; on a GPU a whole step."""
        if self.device.type != "cpu":
            return {candidate: WholeStep(self, candidate) for candidate in found}
        model = gpt.GPT(self.config.model, self.vocab_size).train()
        ids_BT, targets_BT = torch.randint(self.vocab_size, (2, self.n_blocks, self.config.model.block_size))

        def step(candidate: Candidate) -> None:
            model.compute_dtype = PRECISIONS[candidate.precision]
            model.zero_grad(set_to_none=True)
            BACKENDS[candidate.backend].loss(model, ids_BT, targets_BT).backward()

        return {candidate: functools.partial(step, candidate) for candidate in found}

    def cache_file(self, found: list[Candidate]) -> Path:
        """Where the choice among `found` is kept: a file for all that it may depend on."""
        model = self.config.model
        shape = asdict(model) | {"dropout": model.dropout > 0, "rope_theta": None}
        about = {
            "processor": processor_name(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "device": describe_device(self.device),
            "versions": [torch.__version__, _version("numba"), _code(self.device.type)],
            "candidates": [str(candidate) for candidate in found],
            "shape": [shape, self.vocab_size, self.n_blocks],
            "optimizer": self.config.train.optimizer if self.device.type != "cpu" else None,
        }
        return cache_folder() / "backends" / f"{sha256_of_json(about)[:32]}.json"


class WholeStep:
    """A candidate's step on a GPU; the first one takes in what is done once."""

    def __init__(self, trial: Trial, candidate: Candidate) -> None:
        train = replace(trial.config.train, **asdict(candidate))
        self._make = functools.partial(
            StepBenchmark, replace(trial.config, train=train), trial.vocab_size, trial.device
        )
        self._rehearsal: StepBenchmark | None = None

    def __call__(self) -> None:
        if self._rehearsal is None:
            rehearsal = self._make()
            rehearsal.first_steps()
            if rehearsal.cuda_graph is not None and (problem := rehearsal.cuda_graph.problem):
                raise problem
            self._rehearsal = rehearsal
        self._rehearsal.step()
        synchronize(self._rehearsal.model.device)


def race(
    trials: Trials, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[Candidate, float], dict[Candidate, Exception]]:
    """Seconds of each candidate's fastest pass, and what those that are out have raised.

    All take turns, so that a machine that is busy for a moment is so for all. The first pass of each pays for what is
    done once; then go on, while there is time, those that may still be the fastest.
    """
    seconds: dict[Candidate, float] = {}
    failures: dict[Candidate, Exception] = {}

    def run(candidate: Candidate) -> None:
        start = clock()
        try:
            trials[candidate]()
        except Exception as failure:  # whatever a compiler or a driver raises
            failures[candidate] = failure.with_traceback(None)  # which would hold on to memory
            seconds.pop(candidate, None)
        else:
            seconds[candidate] = min(seconds.get(candidate, math.inf), clock() - start)

    for candidate in trials:
        run(candidate)
    start = clock()
    for round_ in range(MAX_ROUNDS):
        limit = math.inf if round_ == 0 else OUT_OF_REACH * min(seconds.values(), default=0.0)
        for candidate in [candidate for candidate, its in seconds.items() if its <= limit]:
            run(candidate)
        if clock() - start > BUDGET_S:
            break
    return seconds, failures


def _settle(
    train: TrainConfig,
    found: list[Candidate],
    seconds: dict[Candidate, float],
    failures: dict[Candidate, Exception],
) -> BackendChoice:
    told = failures
    if seconds:  # one after the other they may find the memory that all at once have not
        told = {candidate: failure for candidate, failure in failures.items() if not is_out_of_memory(failure)}
    reasons = {str(candidate): _reason(failure) for candidate, failure in told.items()}
    if not seconds:
        if train.backend != "auto":
            raise UsageError(
                f"--backend {train.backend} cannot be used here: {'; '.join(dict.fromkeys(reasons.values()))}"
            )
        return BackendChoice(Candidate("eager", found[0].precision), {}, reasons)
    limit = AS_GOOD_AS_EQUAL * min(seconds.values())
    taken = next(candidate for candidate in found if seconds.get(candidate, math.inf) <= limit)
    return BackendChoice(taken, {str(candidate): its for candidate, its in seconds.items()}, reasons)


def _runs(trials: Trials) -> bool:
    try:
        for step in trials.values():
            step()
    except Exception:  # as above
        return False
    return True


def _reason(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0][:200] if lines else type(failure).__name__


# --- what is known from earlier starts ---


def _read(place: Path, found: list[Candidate]) -> BackendChoice | None:
    """The choice kept in `place`; None where there is none that makes sense."""
    try:
        values: Any = json.loads(place.read_text(encoding="utf-8"))
        taken = next(candidate for candidate in found if str(candidate) == values["candidate"])
        seconds = {str(name): float(its) for name, its in values["seconds"].items()}
        failures = {str(name): str(reason) for name, reason in values["failures"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
    return BackendChoice(taken, seconds, failures) if seconds else None


def _write(place: Path, choice: BackendChoice) -> None:
    values = {"candidate": str(choice.candidate), "seconds": choice.seconds, "failures": choice.failures}
    with contextlib.suppress(OSError, OutOfResourcesError):  # then the next start measures again
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as file:
            file.write(json.dumps(values, indent=1).encode() + b"\n")


@functools.cache
def _code(device_type: str) -> str:
    """Changes with whatever is timed."""
    package = Path(gpt.__file__).parent.parent
    parts = ("model", "kernels") if device_type == "cpu" else ("model", "training")
    files = sorted(path for part in parts for path in (package / part).rglob("*.py"))
    return sha256_of_json([sha256_of(path) for path in files])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
