"""Golden values: losses, gradients, weights, texts and exported files as they were before the code was reorganized.

Bits depend on the processor and on the versions of torch, numpy and numba, so golden.json holds values for each
fingerprint of these. On a known one all must be equal; on another, what a machine cannot change must be equal, losses
must be near, and the bits are skipped. `python tests/test_golden.py --record` adds or replaces this machine's values.

Internal names stand in the adapters only. Change those when names change, and never the values, with two exceptions:
those of a plan when the recipe `auto` changes; and when a kernel adds up in another order on purpose, delete the `bits`
of the cases that it takes part in, for every machine that is not at hand. There is no case for torch.compile: it takes
a minute here, and its bits depend on the C++ compiler too.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import llvmlite.binding
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

GOLDEN = Path(__file__).with_name("golden.json")
VOCAB_SIZE, BLOCK_SIZE, BATCH_SIZE, SEED = 101, 32, 4, 1337
ARCHITECTURES, BACKENDS, SCHEDULES = ("gpt2", "qwen3"), ("eager", "fused"), ("cosine", "wsd")


# --- adapters: all that knows names of tiny_gpt's own ---
#
# They import inside, so that a name which has moved fails its own cases only.


def train_flags(architecture: str, optimizer: str, schedule: str, backend: str, precision: str) -> list[str]:
    """How a run is asked for, all but the text and its folder."""
    steps = {"fp32": 30, "bf16": 10}[precision]  # a step in bf16 takes long on a processor without units for it
    return [
        *f"--recipe overnight --architecture {architecture} --n-layer 2 --n-head 2 --d-model 64".split(),
        *f"--d-ff 160 --block-size {BLOCK_SIZE} --dropout 0.1 --optimizer {optimizer}".split(),
        *f"--schedule {schedule} --backend {backend} --precision {precision} --device cpu".split(),
        *f"--steps {steps} --iters-per-epoch 10 --eval-interval 5 --batch-size 8 --learning-rate 3e-3".split(),
        *f"--warmup-steps 6 --seed {SEED} --no-watchdog --no-keep-awake".split(),
    ]


def more_train_flags(optimizer: str) -> list[str]:
    """What differs between the two ways to train beside the optimizer: tokenizer, noise, parts of a batch."""
    if optimizer == "adamw":
        return "--tokenizer char".split()
    return "--tokenizer bpe --vocab-size 300 --token-noise 0.1 --grad-accum-steps 2 --weight-decay 0.5".split()


def rows_of(metrics: Path) -> list[dict[str, Any]]:
    """{step, train_loss, val_loss, lr, grad_norm} of each evaluation in a metrics.jsonl."""
    columns = ("step", "train_loss", "val_loss", "lr", "grad_norm")
    rows = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [{name: row[name] for name in columns} for row in rows]


def checkpoints_of(run: Path) -> list[Path]:
    """The folders of its checkpoints, the oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def make_model(architecture: str, precision: str, dropout: float) -> torch.nn.Module:
    """A small model as a seed initializes it, ready to train."""
    from tiny_gpt.config import ModelConfig
    from tiny_gpt.model.gpt import GPT

    config = ModelConfig(
        architecture=architecture,  # type: ignore[arg-type]
        n_layer=2,
        n_head=2,
        d_model=64,
        d_ff=160,
        block_size=BLOCK_SIZE,
        dropout=dropout,
    )
    torch.manual_seed(0)
    model = GPT(config, VOCAB_SIZE, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    return model.train()


def mean_loss(backend: str, model: Any, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """What a training step differentiates."""
    from tiny_gpt.backends import BACKENDS

    return BACKENDS[backend].loss(model, ids_BT, targets_BT)


def token_losses(backend: str, model: Any, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """What an evaluation adds up."""
    from tiny_gpt.backends import BACKENDS

    return BACKENDS[backend].losses(model, ids_BT, targets_BT)


def seed_as_training_does(step: int, part: int) -> None:
    from tiny_gpt.training.micro_batches import seed_dropout

    seed_dropout(SEED, step, part)


def token_ids(kind: str, text: str) -> NDArray[np.integer]:
    """The ids of `text` by a tokenizer that was trained on it."""
    from tiny_gpt.tokenizer.base import TOKENIZERS

    return TOKENIZERS[kind].train([text], 300).encode(text)


def batches(ids: NDArray[np.integer], token_noise: float, steps: Iterable[int]) -> list[torch.Tensor]:
    """Inputs and targets of some steps, in turn."""
    from tiny_gpt.data.dataloader import BatchLoader

    found = BatchLoader(ids, BLOCK_SIZE, 8, SEED, token_noise=token_noise)  # type: ignore[arg-type]
    return [ids_BT for step in steps for ids_BT in found.batch(step)[:2]]


def next_logits(model_file: Path, precision: str, n_tokens: int) -> list[NDArray[np.float32]]:
    """Logits (2, V) after each token that two texts grow by, from a prompt of two tokens on."""
    from tiny_gpt.inference.engine import open_engine

    decoder = open_engine(model_file, "cpu").make_decoder(2, precision)
    first_V = decoder.read([1, 2], n_tokens)
    grown = [decoder.step([3 + place % 7, 4 + place % 5], [0, 1]) for place in range(n_tokens)]
    return [np.stack([first_V, first_V]), *grown]


def learning_rates(schedule: str, n_steps: int) -> list[float]:
    """The rate of each step of a run."""
    from tiny_gpt.config import TrainConfig
    from tiny_gpt.training.schedule import learning_rate, schedule_point

    config = TrainConfig(steps=n_steps, warmup_steps=7, schedule=schedule)  # type: ignore[arg-type]
    return [learning_rate(schedule_point(step, n_steps, config.warmup_steps), config) for step in range(n_steps)]


def planned(architecture: str, optimizer: str, text: tuple[int, int, int, int, float], hours: float) -> dict[str, Any]:
    """What the recipe chooses on a machine of a given speed for a text of (train bytes, train tokens, validation
    tokens, vocabulary, bits of the probe), and the bits per byte to expect: middle, low, high."""
    from tiny_gpt.config.recipes import RECIPES
    from tiny_gpt.planning.heuristics import ComputeBudget, choose_settings, steps_for
    from tiny_gpt.planning.scaling_law import forecast
    from tiny_gpt.planning.throughput import StepTimeModel
    from tiny_gpt.planning.types import TextStats

    asked = RECIPES["auto"].with_flat(dict(architecture=architecture, optimizer=optimizer), "a test")
    step_time, budget = StepTimeModel(0.005, 2e-12, text[3]), ComputeBudget(3600 * hours)
    stats = TextStats(*text)
    config = choose_settings(asked, stats, budget, step_time, lambda _: True)
    steps = steps_for(config, budget, step_time)
    expected = forecast(config, stats, steps)
    model, train = config.model, config.train
    return {
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "d_model": model.d_model,
        "d_ff": model.d_ff,
        "block_size": model.block_size,
        "dropout": model.dropout,
        "batch_size": train.batch_size,
        "learning_rate": train.learning_rate,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "token_noise": train.token_noise,
        "steps": steps,
        "bits_per_byte": [expected.bits_per_byte, expected.low, expected.high],
    }


# --- what stays as it is whatever the names ---


def command(*words: object) -> str:
    """`python -m tiny_gpt WORDS` in this process, which starting another would take seconds for; what it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with (
        mock.patch.object(sys, "argv", ["tiny_gpt", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_module("tiny_gpt", run_name="__main__", alter_sys=False)
            code: object = 0
        except SystemExit as leaving:
            code = leaving.code
    printed, complaints = map(content_of, (out, err))
    assert code in (0, None), f"{' '.join(map(str, words))} ended with {code}:\n{printed}\n{complaints}"
    return printed


def content_of(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


@contextlib.contextmanager
def no_numba() -> Iterator[None]:
    """As on a machine without numba, where torch writes the text."""
    with mock.patch.dict(sys.modules, {"numba": None}):
        yield


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """How many threads torch computes with decides how its sums are split up, and so the bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_text() -> str:
    """A few thousand words: regular enough to be learned, with some letters of two and three bytes."""
    rng = random.Random(0)
    syllables = "ka lo mi ren tu sha vel on ip dra né zü".split()
    words = ["".join(rng.choice(syllables) for _ in range(rng.randrange(1, 4))) for _ in range(60)]
    followers = {word: [rng.choice(words) for _ in range(4)] for word in words}
    word, sentences = words[0], []
    for number in range(420):
        sentence = []
        for _ in range(rng.randrange(4, 12)):
            sentence.append(word)
            word = rng.choice(followers[word])
        ending = "…" if number % 25 == 24 else "."
        sentences.append(" ".join(sentence).capitalize() + ending)
    return "\n".join(sentences) + "\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bytes_of(x: torch.Tensor) -> bytes:
    return x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """One sum over the names, types, shapes and bits of all."""
    each = {name: f"{x.dtype} {tuple(x.shape)} {sha256(bytes_of(x))}" for name, x in tensors.items()}
    return sha256(json.dumps(each, sort_keys=True).encode())


def digest_of_all(tensors: Iterable[torch.Tensor]) -> str:
    return digest({f"{number:04}": x for number, x in enumerate(tensors)})


def hexes(numbers: Iterable[float]) -> list[str]:
    return [float(number).hex() for number in numbers]


@dataclass
class Found:
    """What a case came to, in plain JSON types."""

    same: dict[str, Any] = field(default_factory=dict)
    """Equal on every machine."""
    near: dict[str, list[str]] = field(default_factory=dict)
    """Numbers in hex: equal on the same kind of machine, and near one another on any."""
    bits: dict[str, Any] = field(default_factory=dict)
    """Equal on the same kind of machine."""


class Workshop:
    """A folder with a text and the runs made of it, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = folder / "text.txt"
        self.text.write_bytes(make_text().encode())
        self.run = functools.cache(self._run)

    def _run(self, architecture: str, optimizer: str, backend: str, precision: str = "fp32") -> Path:
        """The folder of a finished run: adamw with a cosine and characters, or muon with wsd, bpe, noise and parts."""
        schedule = {"adamw": "cosine", "muon": "wsd"}[optimizer]
        folder = self.folder / f"{architecture}-{optimizer}-{backend}-{precision}"
        flags = train_flags(architecture, optimizer, schedule, backend, precision)
        command("train", self.text, *flags, *more_train_flags(optimizer), "--out-dir", folder)
        return folder

    def model(self, architecture: str) -> Path:
        """A trained model: gpt2's with characters, qwen3's with bpe."""
        optimizer = {"gpt2": "adamw", "qwen3": "muon"}[architecture]
        return self.run(architecture, optimizer, "fused") / "tiny_gpt_final.pt"


# --- the cases ---


def step_case(
    architecture: str, precision: str, backend: str, dropout: float, n_threads: int, workshop: Workshop
) -> Found:
    """A forward and a backward pass, and each token's loss without gradients."""
    model = make_model(architecture, precision, dropout)
    begins = digest(model.state_dict())
    # What begins at zero would hide most gradients. Each name has noise of its own, so that their order is no matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(int(sha256(name.encode())[:8], 16))
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.08)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCAB_SIZE, (BATCH_SIZE, BLOCK_SIZE + 1), generator=generator)
    ids_BT, targets_BT = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    with threads(n_threads):
        seed_as_training_does(step=3, part=1)
        loss = mean_loss(backend, model, ids_BT, targets_BT)
        loss.backward()
        with torch.no_grad():
            losses_BT = token_losses(backend, model.eval(), ids_BT, targets_BT)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Found(
        same={"names": sorted(gradients)},
        near={"loss": hexes([loss.item()]), "mean token loss": hexes([losses_BT.double().mean().item()])},
        bits={
            "initial weights": begins,
            "gradients": digest(gradients),
            "token losses": digest({"losses": losses_BT}),
        },
    )


def found_in_run(folder: Path) -> Found:
    rows = rows_of(folder / "metrics.jsonl")
    files = ("tiny_gpt_best.pt", "tiny_gpt_final.pt")
    weights = {file: torch.load(folder / file, weights_only=True)["weights"] for file in files}
    return Found(
        same={"steps": [row["step"] for row in rows], "names": sorted(weights["tiny_gpt_final.pt"])},
        near={name: hexes(row[name] for row in rows) for name in ("train_loss", "val_loss", "lr")},
        bits={
            "grad_norm": hexes(row["grad_norm"] for row in rows),
            **{file: digest(tensors) for file, tensors in weights.items()},
        },
    )


def run_case(architecture: str, optimizer: str, backend: str, precision: str, workshop: Workshop) -> Found:
    """A whole training by the command line."""
    return found_in_run(workshop.run(architecture, optimizer, backend, precision))


def resumed_case(architecture: str, optimizer: str, backend: str, workshop: Workshop) -> Found:
    """A run resumed from its first checkpoint, as after a power cut; equal to the uninterrupted run."""
    reference = workshop.run(architecture, optimizer, backend, "fp32")
    folder = reference.with_name(f"{reference.name}-resumed")
    shutil.copytree(reference, folder)
    later = checkpoints_of(folder)[1:]
    assert later, "the run has made too few checkpoints"
    for checkpoint in later:
        shutil.rmtree(checkpoint)
    for name in ("tiny_gpt_best.pt", "tiny_gpt_final.pt", "metrics.jsonl"):
        (folder / name).unlink()
    command("resume", folder)
    found = found_in_run(folder)
    assert found == found_in_run(reference)
    return found


WAYS = {
    "greedy": "--temperature 0 --num-samples 1 --max-tokens 90",
    "sampled": "--temperature 0.9 --top-k 25 --top-p 0.95 --min-p 0.01 --repetition-penalty 1.1 --num-samples 3 "
    "--max-tokens 90",
}


def text_case(architecture: str, way: str, decoder: str, precision: str, workshop: Workshop) -> Found:
    """Texts that are longer than block_size, by the decoder that numba compiles or by torch's."""
    with no_numba() if decoder == "torch" else contextlib.nullcontext():
        lines = command(
            *("generate", "--checkpoint", workshop.model(architecture), "--prompt", "Kalo", "--seed", 5, "--json"),
            *("--device", "cpu", "--precision", precision, *WAYS[way].split()),
        ).splitlines()
    texts = [json.loads(line) for line in lines]
    assert all(text["n_tokens"] > 2 * BLOCK_SIZE for text in texts)
    return Found(same={"texts": len(texts)}, bits={"texts": sha256("\0".join(one["text"] for one in texts).encode())})


def logits_case(architecture: str, decoder: str, precision: str, workshop: Workshop) -> Found:
    """What such texts are drawn from, whose every bit a text alone does not show."""
    with no_numba() if decoder == "torch" else contextlib.nullcontext():
        logits_T2V = np.stack(next_logits(workshop.model(architecture), precision, 2 * BLOCK_SIZE + 10))
    return Found(
        same={"shape": list(logits_T2V.shape)},
        bits={"logits": digest({"logits": torch.from_numpy(logits_T2V)})},
    )


def score_case(architecture: str, workshop: Workshop) -> Found:
    """`eval` of a text."""
    scores = json.loads(command("eval", workshop.model(architecture), workshop.text, "--device", "cpu", "--json"))
    return Found(
        same={name: scores[name] for name in ("n_tokens", "n_characters", "n_bytes")},
        near={name: hexes([scores[name]]) for name in ("nats_per_token", "bits_per_byte")},
    )


def export_case(architecture: str, to: str, workshop: Workshop) -> Found:
    """The files that other tools read."""
    if to == "gguf":
        pytest.importorskip("gguf")
    folder = workshop.folder / f"{architecture}-{to}"
    command("export", workshop.model(architecture), "--to", to, "--out", folder)
    found = Found(same={"files": sorted(path.name for path in folder.iterdir())})
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".gguf"):
            found.bits[path.name] = sha256(path.read_bytes())
        elif path.name == "tokenizer.json":
            found.same[path.name] = sha256(path.read_bytes())
        elif path.name == "config.json" and to == "hf":  # that of safetensors has settings by our own names
            found.same[path.name] = json.loads(path.read_bytes())
    return found


def tokens_case(kind: str, workshop: Workshop) -> Found:
    """Token ids of a text, as numbers whatever their type."""
    ids = token_ids(kind, make_text())
    return Found(same={"n": len(ids), "ids": sha256(ids.astype("<i8").tobytes())})


def batches_case(token_noise: float, workshop: Workshop) -> Found:
    """The first six steps' batches."""
    return Found(same={"batches": digest_of_all(batches(token_ids("char", make_text()), token_noise, range(6)))})


def rates_case(schedule: str, workshop: Workshop) -> Found:
    """The learning rates of a run of fifty steps."""
    return Found(near={"rates": hexes(learning_rates(schedule, 50))})


def plan_case(
    architecture: str, optimizer: str, text: tuple[int, int, int, int, float], hours: float, workshop: Workshop
) -> Found:
    """Choices and forecast, without measuring anything."""
    chosen = planned(architecture, optimizer, text, hours)
    return Found(near={"bits per byte": hexes(chosen.pop("bits_per_byte"))}, same=chosen)


FP32_NEAR, BF16_NEAR = 1e-3, 2e-2
# Of numbers that only the last bit of an exponential or a cosine may change from one C library to the other.
SCALAR_NEAR = 1e-12
SMALL_TEXT, LARGE_TEXT = (1_000_000, 500_000, 60_000, 512, 3.0), (500_000_000, 130_000_000, 2_500_000, 8192, 2.7)


@dataclass(frozen=True)
class Case:
    """How a value is measured, and how near it must be on an unknown machine."""

    measure: Callable[[Workshop], Found]
    near: float = FP32_NEAR


def all_cases() -> dict[str, Case]:
    """By names that golden.json knows them by."""
    cases: dict[str, Case] = {}
    nears = {"fp32": FP32_NEAR, "bf16": BF16_NEAR}

    def step(architecture: str, precision: str, backend: str, dropout: float, n_threads: int = 1) -> None:
        name = f"step {architecture} {precision} {backend} dropout {dropout}"
        name += f" {n_threads} threads" if n_threads > 1 else ""
        measure = functools.partial(step_case, architecture, precision, backend, dropout, n_threads)
        cases[name] = Case(measure, nears[precision])

    for architecture in ARCHITECTURES:
        for precision in nears:
            for backend in ("eager", "fused"):
                for dropout in (0.0, 0.2):
                    step(architecture, precision, backend, dropout)
        step(architecture, "fp32", "fused", 0.2, n_threads=2)
    for architecture in ARCHITECTURES:
        for optimizer in ("adamw", "muon"):
            for backend in ("eager", "fused"):
                name = f"run {architecture} {optimizer} fp32 {backend}"
                cases[name] = Case(functools.partial(run_case, architecture, optimizer, backend, "fp32"))
    for architecture, optimizer, backend in (("gpt2", "adamw", "eager"), ("qwen3", "muon", "fused")):
        measure = functools.partial(run_case, architecture, optimizer, backend, "bf16")
        cases[f"run {architecture} {optimizer} bf16 {backend}"] = Case(measure, BF16_NEAR)
        resumed = functools.partial(resumed_case, architecture, optimizer, backend)
        cases[f"resumed {architecture} {optimizer} fp32 {backend}"] = Case(resumed)
    for architecture in ARCHITECTURES:
        for decoder, precision in (("numba", "fp16"), ("numba", "fp32"), ("torch", "fp32")):
            logits = functools.partial(logits_case, architecture, decoder, precision)
            cases[f"logits {architecture} {decoder} {precision}"] = Case(logits)
            for way in WAYS:
                text = functools.partial(text_case, architecture, way, decoder, precision)
                cases[f"text {architecture} {way} {decoder} {precision}"] = Case(text)
        cases[f"score {architecture}"] = Case(functools.partial(score_case, architecture))
        for to in ("hf", "gguf", "safetensors"):
            cases[f"export {architecture} {to}"] = Case(functools.partial(export_case, architecture, to))
    for kind in ("char", "byte", "bpe"):
        cases[f"tokens {kind}"] = Case(functools.partial(tokens_case, kind))
    for token_noise in (0.0, 0.1):
        cases[f"batches noise {token_noise}"] = Case(functools.partial(batches_case, token_noise))
    for schedule in SCHEDULES:
        cases[f"rates {schedule}"] = Case(functools.partial(rates_case, schedule), SCALAR_NEAR)
    plan = functools.partial(plan_case, "qwen3", "muon", SMALL_TEXT, 6.0)
    cases["plan qwen3 muon small text 6h"] = Case(plan, SCALAR_NEAR)
    plan = functools.partial(plan_case, "gpt2", "adamw", LARGE_TEXT, 0.5)
    cases["plan gpt2 adamw large text 0.5h"] = Case(plan, SCALAR_NEAR)
    return cases


CASES = all_cases()


# --- measuring and comparing ---


def fingerprint() -> dict[str, Any]:
    """What bits depend on. numba compiles for the very processor, and torch's products know its maker."""
    return {
        "system": sys.platform,
        "processor": llvmlite.binding.get_host_cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16 units": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        **{package: version(package) for package in ("torch", "numpy", "numba", "llvmlite")},
    }


def read_golden() -> list[dict[str, Any]]:
    machines: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else []
    return machines


@contextlib.contextmanager
def open_workshop(folder: Path) -> Iterator[Workshop]:
    """A workshop whose values do not depend on what ran before, nor on the user's own files."""
    with threads(1), mock.patch.dict(os.environ, {"TINY_GPT_CACHE": str(folder / "cache")}):
        torch.set_flush_denormal(True)  # as the first training in this process does permanently
        yield Workshop(folder)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    # A process that compiles the kernels itself may round differently from those that load them from the cache.
    program = "from tiny_gpt.kernels.precompile import compile_all; compile_all()"
    subprocess.run([sys.executable, "-c", program], check=True)
    with open_workshop(tmp_path_factory.mktemp("golden")) as opened:
        yield opened


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Any], bool]:
    """The values to compare with, and whether they are those of such a machine."""
    machines = read_golden()
    mine = next((machine for machine in machines if machine["fingerprint"] == fingerprint()), None)
    return (mine or machines[0])["values"], mine is not None


# Set-up leaves these kernels out on a processor without units for bf16; compiling them takes a minute.
MARKED = [pytest.param(name, marks=pytest.mark.slow if "bf16 fused" in name else ()) for name in CASES]


@pytest.mark.parametrize("name", MARKED)
def test_equals_its_golden_value(name: str, workshop: Workshop, golden: tuple[dict[str, Any], bool]) -> None:
    expected, is_known = golden
    found = CASES[name].measure(workshop)
    then = Found(**expected[name])
    assert found.same == then.same
    # Bits were deleted where the kernels have changed on purpose since that machine was at hand.
    is_outdated = bool(found.bits) and not then.bits
    # A plan changes with the recipe, and its values are then recorded on whatever machine is at hand.
    if is_known and not (is_outdated or name.startswith("plan ") or is_compiled_here(name)):
        assert found == then
        return
    assert found.near.keys() == then.near.keys() and (is_outdated or found.bits.keys() == then.bits.keys())
    for what, numbers in found.near.items():
        expected_numbers = list(map(float.fromhex, then.near[what]))
        assert list(map(float.fromhex, numbers)) == pytest.approx(expected_numbers, rel=CASES[name].near), what
    if found.bits:
        pytest.skip(f"golden.json holds no bits for a machine like this one: {fingerprint()}")


def is_compiled_here(name: str) -> bool:
    """Whether this process may have compiled the kernels of a case itself, and so rounds differently from a process
    that loads them: set-up leaves bf16 out on a processor without units for it."""
    from tiny_gpt.kernels.processor import HAS_BF16

    return "bf16 fused" in name and not HAS_BF16


def test_golden_values_are_those_of_the_cases() -> None:
    assert all(machine["values"].keys() == CASES.keys() for machine in read_golden())


def record() -> None:
    """Put this machine's values into golden.json."""
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, open_workshop(Path(folder)) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, case in CASES.items():
            values[name] = vars(case.measure(opened))
            print(name, flush=True)
    machines = [machine for machine in read_golden() if machine["fingerprint"] != fingerprint()]
    machines.append({"fingerprint": fingerprint(), "values": values})
    GOLDEN.write_text(json.dumps(machines, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python tests/test_golden.py --record")
    record()
