"""The plan: what the recipe chooses, what a machine's speed and memory are thought to be, what is said of it all."""

import json
import math
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import forecast as bench
from tiny_gpt.cli import main as cli
from tiny_gpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from tiny_gpt.config.recipes import AUTO_SETTINGS, RECIPES
from tiny_gpt.data.choose_tokenizer import auto_tokenizer
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.errors import UsageError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.planning import planner as plan_module
from tiny_gpt.planning.heuristics import Budget, candidates, choose, min_block_size, steps_of, tokens_per_step
from tiny_gpt.planning.memory import available_memory_bytes, estimate_memory_bytes
from tiny_gpt.planning.pilot_run import probe
from tiny_gpt.planning.planner import TIMED_ON_GPU, Planner, timed_shape
from tiny_gpt.planning.scaling_law import EIGHT_OF_TEN, forecast, law, shortfall, waste
from tiny_gpt.planning.throughput import StepTimes, measure_step_s, step_flops
from tiny_gpt.planning.types import Candidate, Plan, TextStats
from tiny_gpt.ui.plan_report import table

AUTO = RECIPES["auto"]
CPU = torch.device("cpu")
SMALL_TEXT = TextStats(1_000_000, 500_000, 60_000, 512, 3.0)
LARGE_TEXT = TextStats(500_000_000, 130_000_000, 2_500_000, 8192, 2.7)


def speed(config):
    """A machine of 500 GFLOP/s that spends 5 ms on each step in any case."""
    return StepTimes(0.005, 2e-12, 4096)(config)


def chosen(config=AUTO, text=LARGE_TEXT, seconds=300.0, budget=None):
    return choose(config, text, budget or Budget(seconds), speed, lambda _: True)


def said(**settings):
    """The recipe where a person has given these."""
    start = AUTO if "n_head" not in settings else replace(AUTO, model=replace(AUTO.model, d_model=448))
    config = start.with_flat(settings, "a test")
    auto = tuple(name for name in AUTO_SETTINGS if name not in settings)
    return replace(config, train=replace(config.train, auto=auto))


def n_hidden(config):
    return step_flops(config, 256) / tokens_per_step(config)


# --- what is chosen ---


@pytest.mark.parametrize("text", [SMALL_TEXT, LARGE_TEXT])
def test_more_time_means_no_smaller_model_and_more_of_the_text(text):
    found = [chosen(text=text, seconds=seconds) for seconds in (5, 30, 300, 3600, 6 * 3600, 86_400)]
    sizes = [(config.model.n_layer * config.model.d_model**2) for config in found]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    rates = [config.train.learning_rate for config in found]
    assert rates[0] > rates[-1]
    assert all(config.train.auto == () for config in found), "nothing is left open"


def test_dropout_and_noise_come_with_reading_a_text_often():
    few, many = chosen(text=LARGE_TEXT, seconds=600), chosen(text=SMALL_TEXT, seconds=3600)
    assert few.model.dropout == 0 < many.model.dropout
    assert few.train.token_noise == 0 < many.train.token_noise


@pytest.mark.parametrize(
    "settings",
    [
        dict(n_layer=5),
        dict(d_model=320),
        dict(d_model=250),
        dict(n_layer=3, d_model=96, n_head=3),
        dict(n_head=7, d_model=448),
        dict(n_head=7),
        dict(d_ff=100, block_size=33, batch_size=3, dropout=0.4, learning_rate=1e-3),
        dict(architecture="gpt2", optimizer="adamw"),
    ],
)
def test_what_a_person_says_stays_and_the_rest_adapts(settings):
    config = chosen(said(**settings))
    assert settings.items() <= config.to_flat().items()
    assert config.model.dim_per_head % 2 == 0 and config.model.d_model % config.model.n_head == 0
    assert config.train.auto == ()


def test_width_and_layers_fit_what_is_said_of_the_other():
    deep, shallow = chosen(said(n_layer=12)), chosen(said(n_layer=2))
    assert deep.model.d_model < shallow.model.d_model


def test_a_recipe_without_choices_is_left_alone():
    complete = chosen(said(**{name: AUTO.to_flat()[name] for name in AUTO_SETTINGS}))
    assert complete == replace(AUTO, train=replace(AUTO.train, auto=()))


def test_a_short_text_gets_a_block_that_fits_into_its_shorter_part():
    config = chosen(text=replace(SMALL_TEXT, train_tokens=900, val_tokens=100))
    assert config.model.block_size < 100
    assert min_block_size(AUTO) < 100 and min_block_size(said(block_size=77)) == 77


def test_a_batch_divides_into_the_parts_that_a_person_wants():
    for n_parts in (1, 3, 16):
        assert chosen(said(grad_accum_steps=n_parts)).train.batch_size % n_parts == 0
    with pytest.raises(UsageError, match="--batch-size 8 does not divide into --grad-accum-steps 3 parts"):
        said(grad_accum_steps=3, batch_size=8)


def test_a_tiny_text_gets_a_model_that_is_larger_than_the_smallest():
    tiny = TextStats(40_000, 36_000, 4_000, 256, 2.9)
    assert (chosen(text=tiny).model.n_layer, chosen(text=tiny).model.d_model) == (3, 128)


def test_what_this_process_holds_already_is_free_for_it(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert available_memory_bytes(CPU) > 50 << 20


def test_counted_budgets_get_a_size_too():
    sizes = [
        n_hidden(chosen(budget=budget))
        for budget in (Budget(None, tokens=10**6), Budget(None, tokens=10**8), Budget(None, tokens=10**9))
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    config = chosen(budget=Budget(None, steps=1000))
    assert steps_of(config, Budget(None, steps=1000), speed) == 1000


def test_models_that_do_not_fit_into_memory_are_not_chosen():
    free = chosen(seconds=86_400)
    limit = estimate_memory_bytes(free, 8192, CPU) - 1
    tight = choose(
        AUTO, LARGE_TEXT, Budget(86_400), speed, lambda config: estimate_memory_bytes(config, 8192, CPU) <= limit
    )
    assert estimate_memory_bytes(tight, 8192, CPU) <= limit
    with pytest.raises(UsageError, match="fits into the memory that is free"):
        choose(AUTO, LARGE_TEXT, Budget(60), speed, lambda _: False)


def test_all_candidates_are_complete():
    for config in candidates(AUTO, LARGE_TEXT, Budget(60), speed):
        assert config.train.batch_size > 0 and 0 < config.train.learning_rate < 1


def test_auto_takes_pieces_of_words_but_for_tiny_texts(tmp_path):
    assert auto_tokenizer(10_000) == "char" and auto_tokenizer(10_000_000) == "bpe"
    path = tmp_path / "text.txt"
    path.write_text("a little text. " * 200)
    dataset = finish(prepare(DataConfig((str(path),), tokenizer="auto"), 8))
    assert dataset.tokenizer.to_dict()["type"] == "char"


# --- speed and memory ---


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_the_arithmetic_of_a_step_is_what_torch_counts(architecture):
    model = ModelConfig(architecture=architecture, n_layer=2, n_head=2, d_model=64, d_ff=96, block_size=32, dropout=0.0)
    config = RunConfig(model, train=TrainConfig(batch_size=4))
    network = GPT(model, 100)
    ids_BT, targets_BT = torch.randint(100, (2, 4, 32))
    with FlopCounterMode(display=False) as counter:
        network.losses(ids_BT, targets_BT).mean().backward()
    assert step_flops(config, 100) == pytest.approx(counter.get_total_flops(), rel=0.06)  # it counts masked places too


def test_muons_products_are_those_of_the_matrices_inside_the_blocks_whatever_the_vocabulary():
    """d_ff may equal the vocabulary, and d_model too."""
    config = said(n_layer=2, n_head=1, d_model=64, d_ff=128, batch_size=4, block_size=32)
    muons = []
    for vocab_size in (64, 128, 300):
        adamw = replace(config, train=replace(config.train, optimizer="adamw"))
        muon = replace(config, train=replace(config.train, optimizer="muon"))
        muons.append(step_flops(muon, vocab_size) - step_flops(adamw, vocab_size))
    square, wide = 5 * 6 * 64**3, 5 * (4 * 64**2 * 128 + 2 * 64**3)
    assert muons == [2 * (4 * square + 3 * wide)] * 3


def test_a_machine_whose_steps_take_seconds_is_not_measured_for_long():
    model = ModelConfig(n_layer=1, n_head=1, d_model=8, d_ff=8, block_size=8)
    config = RunConfig(model, train=TrainConfig(batch_size=2, precision="fp32", backend="eager"))
    now = [0.0]

    def clock():
        now[0] += 2.0
        return now[0]

    assert measure_step_s(config, 16, CPU, clock) == pytest.approx(2.0)
    assert now[0] <= 14, "two steps and their readings of the clock"


def test_times_between_two_sizes_lie_on_a_line():
    small, large = said(n_layer=2, d_model=64, d_ff=128), said(n_layer=4, d_model=256, d_ff=512)
    middle = said(n_layer=4, d_model=128, d_ff=256)
    true = StepTimes(0.01, 3e-12, 300)
    times = StepTimes.through({small: true(small), large: true(large)}, 300)
    assert times(middle) == pytest.approx(true(middle))
    # noise that makes the small one the slower gives no negative times
    odd = StepTimes.through({small: 0.5, large: 0.4}, 300)
    assert 0 < odd(small) <= odd(middle) <= odd(large) <= 0.5


def test_a_step_is_timed_by_the_clock_and_leaves_random_numbers_alone():
    model = ModelConfig(n_layer=1, n_head=1, d_model=8, d_ff=8, block_size=8)
    config = RunConfig(model, train=TrainConfig(batch_size=2, precision="fp32", backend="eager", for_="1h"))
    now = [0.0]

    def clock():
        now[0] += 0.25
        return now[0]

    state = torch.get_rng_state()
    assert measure_step_s(config, 16, CPU, clock) == pytest.approx(0.25)
    assert torch.equal(torch.get_rng_state(), state)


# --- what is said ---


def test_a_probe_tells_an_easy_text_from_a_hard_one_and_the_same_each_time(tmp_path):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=5)) for _ in range(2000)]
    texts = {"easy": "to be or not to be. " * 600, "hard": " ".join(words)}
    bits = {}
    for name, content in texts.items():
        (tmp_path / name).write_text(content)
        dataset = finish(prepare(DataConfig((str(tmp_path / name),)), 16))
        bits[name] = [probe(dataset, CPU, "eager", "fp32").pilot_bits_per_byte for _ in range(2)]
        assert bits[name][0] == bits[name][1]
    assert bits["easy"][0] < 1 < 2.5 < bits["hard"][0] < 5


def test_a_plan_survives_its_file():
    planner = Planner(SMALL_TEXT, CPU, StepTimes(0.005, 2e-12, 512), Candidate("fused", "bf16"))
    config, plan = planner.plan(replace(AUTO, train=replace(AUTO.train, for_="5m")))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.seconds == 300 and plan.tokens == plan.steps * tokens_per_step(config)
    assert plan.data_epochs == pytest.approx(plan.tokens / SMALL_TEXT.train_tokens)


def test_more_of_anything_is_expected_to_help():
    config = chosen()
    found = [forecast(config, LARGE_TEXT, steps) for steps in (100, 1000, 10_000)]
    losses = [each.bits_per_byte for each in found]
    assert losses == sorted(losses, reverse=True)
    assert all(each.low < each.bits_per_byte < each.high for each in found)
    harder = replace(LARGE_TEXT, pilot_bits_per_byte=3.5)
    assert forecast(config, harder, 1000).bits_per_byte > losses[1]
    models = [replace(config.model, n_layer=n_layer) for n_layer in (1, 2, 4, 8)]
    lacking = [shortfall(replace(config, model=model), LARGE_TEXT, 1000) for model in models]
    assert lacking == sorted(lacking, reverse=True)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} of a text, and {i * i} is its square.\n" for i in range(400)))
    return path


def test_the_command_tells_the_plan_and_a_table(text, capsys):
    assert cli.main(["plan", str(text), "--for", "6h", "--n-layer", "1", "--d-model", "32"]) == 0
    out = capsys.readouterr().out
    for words in ("1 layer, ", "width 32", "bits per byte", "memory", "5m", "24h", "--optimizer adamw", "6 h 00 min"):
        assert words in out, out


def test_a_plan_goes_by_the_step_of_the_model_itself_where_that_takes_little(monkeypatch):
    measured = []

    def twice_as_long(config, *_):
        measured.append(config)
        return 2 * speed(config)

    monkeypatch.setattr(plan_module, "measure_step_s", twice_as_long)
    planner = Planner(SMALL_TEXT, CPU, StepTimes(0.005, 2e-12, 4096), Candidate("fused", "bf16"))
    config = replace(AUTO, train=replace(AUTO.train, for_="5m"))
    corrected = planner.corrected(config)
    assert corrected.step_times(measured[0]) == pytest.approx(2 * speed(measured[0]))
    assert (measured[0].train.backend, measured[0].train.precision) == ("fused", "bf16")
    assert corrected.plan(config)[1].steps < planner.plan(config)[1].steps
    slow = planner._replace(step_times=StepTimes(5.0, 2e-12, 4096))
    assert slow.corrected(config) is slow and len(measured) == 1


@pytest.mark.parametrize("is_bpe", [True, False])
def test_the_table_tells_what_other_choices_cost(is_bpe):
    planner = Planner(SMALL_TEXT, CPU, StepTimes(0.005, 2e-12, 512), Candidate("fused", "bf16"))
    rows = {}
    for line in table(replace(AUTO, train=replace(AUTO.train, for_="5m")), planner, is_bpe):
        label, *cells = re.split(" {2,}", line.strip())
        rows[label] = cells
    chosen = [float(loss) for loss in rows["as chosen"]]
    assert ("--tokenizer char" in rows) == is_bpe
    for choice in {"--tokenizer char", "--optimizer adamw", "--architecture gpt2"} & set(rows):
        assert all(float(loss) > best for loss, best in zip(rows[choice], chosen, strict=True)), choice
    assert all(float(loss) >= best - 0.02 for loss, best in zip(rows["a larger model"], chosen, strict=True))


def test_the_plan_stands_beside_what_came_true(text, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(text), "--no-watchdog", "--steps", "30", "--n-layer", "1", "--d-model", "32"]) == 0
    out = capfd.readouterr().out
    plan = json.loads((tmp_path / "runs/text/plan.json").read_bytes())
    config = json.loads((tmp_path / "runs/text/config.json").read_bytes())
    assert plan["steps"] == 30 and config["auto"] == [] and config["architecture"] == "qwen3"
    assert re.search(r"expected +\d\.\d\d bits per byte", out)
    assert re.search(r"planned +\d\.\d{3} bits per byte, came \d\.\d{3}", out), out


def test_a_run_that_goes_on_keeps_what_was_chosen_but_for_what_is_said_now(text, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    small = ["--no-watchdog", "--n-layer", "1", "--d-model", "32"]
    assert cli.main(["train", str(text), *small, "--steps", "20"]) == 0
    before = json.loads((tmp_path / "runs/text/config.json").read_bytes())
    assert cli.main(["resume", "text", "--steps", "40", "--batch-size", "64"]) == 0
    after = json.loads((tmp_path / "runs/text/config.json").read_bytes())
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"steps", "batch_size"} and after["batch_size"] == 64
    assert "planned" in capfd.readouterr().out
    assert math.isclose(before["learning_rate"], after["learning_rate"])


def test_the_law_is_that_of_the_recorded_runs_and_holds_for_texts_it_has_not_seen():
    rows = [json.loads(line) for line in bench.RUNS.read_text().splitlines()]
    fitted = bench.fit(rows)
    assert (fitted.power, fitted.readings) == (law().power, law().readings)
    assert [*fitted.weights, fitted.deviation] == pytest.approx([*law().weights, law().deviation], rel=1e-3)
    errors = bench.unseen_errors(law(), rows)
    assert len({row["source"] for row in rows}) >= 8
    assert sum(abs(errors) <= EIGHT_OF_TEN * law().deviation) >= 0.8 * len(rows)
    told = [forecast(bench.config_of(row), TextStats(**row["text"]), row["steps"]) for row in rows]
    inside = [each.low <= row["bits_per_byte"] <= each.high for each, row in zip(told, rows, strict=True)]
    assert sum(inside) >= 0.8 * len(rows)


def gpu_steps(config):
    """A GPU that takes 0.1 ms to start a layer's kernels, and else as long as numbers and arithmetic need."""
    return StepTimes(0.0, 1 / 3e14, 512, 1e-4, 1 / 5e11)(config)


def test_a_gpus_speed_is_found_from_what_three_models_take():
    shapes = [timed_shape(AUTO, 10_000, *size) for size in TIMED_ON_GPU]
    found = StepTimes.of_gpu({shape: gpu_steps(shape) for shape in shapes}, 512)
    for size in [(2, 64, 1), (6, 256, 4), (16, 1024, 16)]:
        shape = timed_shape(AUTO, 10_000, *size)
        assert found(shape) == pytest.approx(gpu_steps(shape), rel=1e-3)
    # Whatever was measured, nothing takes less than no time.
    odd = StepTimes.of_gpu(dict(zip(shapes, (3e-3, 1e-3, 2e-3), strict=True)), 512)
    assert min(odd.s_per_flop, odd.s_per_layer, odd.s_per_number) >= 0 and odd(shapes[0]) > 0


def test_steps_are_larger_where_a_device_takes_hardly_longer_for_them_and_not_without_end():
    budget = Budget(60.0)
    slow_to_start = StepTimes(0.0, 1 / 3e14, 512, 2e-3, 1 / 5e11)
    usual, larger = (
        choose(AUTO, LARGE_TEXT, budget, slow_to_start, lambda _: True, larger_steps) for larger_steps in (False, True)
    )
    assert tokens_per_step(usual) < tokens_per_step(larger)
    lacks = [shortfall(config, LARGE_TEXT, steps_of(config, budget, slow_to_start)) for config in (larger, usual)]
    assert lacks[0] < lacks[1]
    wastes = [waste(2048 * times, 1e6) for times in (0.5, 1, 2, 8, 64)]
    assert wastes[:2] == [1.0, 1.0] and wastes == sorted(wastes)
    # Far beyond the critical size more tokens in a step are of no use at all.
    assert wastes[-1] / wastes[-2] == pytest.approx(8, rel=0.2)
