"""Plans for runs that start from a trained model."""

from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.planning.support import AUTO, CPU, FIVE_MINUTES, LARGE_TEXT, SMALL_TEXT, make_planner
from tiny_gpt.config import ModelConfig
from tiny_gpt.duration import parse_duration
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.model_io.model_file import LoadedModel, load_model, save_loaded
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.planning import further_training
from tiny_gpt.planning.further_training import known_model_helps
from tiny_gpt.planning.heuristics import FINE_TUNING_RATE, LORA_RATE
from tiny_gpt.planning.memory import estimate_memory_bytes, with_rank
from tiny_gpt.planning.planner import MAX_LARGE_MODEL_EPOCHS, Planner, unasked_changes
from tiny_gpt.planning.scaling_law import forecast_further
from tiny_gpt.planning.throughput import StepTimeModel, step_flops
from tiny_gpt.planning.types import Candidate
from tiny_gpt.run.planned_run import measure_run
from tiny_gpt.run.run import run
from tiny_gpt.tokenizer.byte_char import ByteTokenizer
from tiny_gpt.ui.plan_report import plan_report

SHAPE = ModelConfig("llama", n_layer=1, n_head=2, d_model=32, d_ff=64, block_size=2048)
# SmolLM2-135M's.
LARGE = ModelConfig("llama", n_layer=30, n_head=9, d_model=576, d_ff=1536, block_size=512)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    save_loaded(path, LoadedModel(GPT(SHAPE, 256).eval(), ByteTokenizer(), Progress(0, 0, 0.0, 0.0, 0.0), {}))
    return path


@pytest.fixture
def config(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(100)))
    data = replace(AUTO.data, data=(str(tmp_path / "text.txt"),))
    train = replace(AUTO.train, start_from=str(model), backend="eager", for_="5m", out_dir=str(tmp_path / "run"))
    return replace(AUTO, data=data, train=train)


def finished(steps):
    """The result of a generator whose events do not matter."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def timed(for_, shape=LARGE, step_s=10.0):
    """The plan for a model of this shape, on a machine whose steps of it take so long."""
    config = replace(AUTO, model=shape, train=replace(AUTO.train, start_from="model.pt", for_=for_))
    auto = tuple(
        name for name in config.train.auto if not hasattr(ModelConfig(), name) or name in ("block_size", "dropout")
    )
    config = replace(config, train=replace(config.train, auto=auto))
    planner = Planner(SMALL_TEXT, CPU, StepTimeModel(step_s, 0.0, 512), Candidate("eager", "fp32"))
    return planner.plan(config)


def test_scarce_memory_is_met_with_micro_batches(monkeypatch):
    fits = []
    whole = timed("1h")[1].memory_bytes
    for available in (whole, whole - 1, 1 << 20):
        monkeypatch.setattr("tiny_gpt.planning.stage_planner.available_memory_bytes", lambda _, n=available: n)
        chosen, plan = timed("1h")
        fits.append((chosen.train.grad_accum_steps, plan.memory_bytes))
        assert chosen.train.batch_size == 4
    assert [parts for parts, _ in fits] == [1, 2, 4] and fits[0][1] > fits[1][1]


def test_adapters_are_trained_where_memory_does_not_suffice_for_all_weights(monkeypatch):
    plans = []
    for available in range(6 << 30, 1 << 30, -(1 << 28)):
        monkeypatch.setattr("tiny_gpt.planning.stage_planner.available_memory_bytes", lambda _, n=available: n)
        chosen, plan = timed("1h")
        if plan.memory_bytes <= available:
            plans.append((int(chosen.train.lora), chosen.train.learning_rate, chosen.train.recompute))
            note = "".join(unasked_changes(AUTO, chosen))
            assert ("--lora" in note) == chosen.train.uses_lora
    ranks, rates, recomputes = zip(*plans, strict=True)
    first = ranks.index(32)
    # Smaller ranks come before --recompute, with which a larger one fits again.
    order = [(recompute, -rank) for recompute, rank in zip(recomputes[first:], ranks[first:], strict=True)]
    assert set(ranks[:first]) == {0} and order == sorted(order)
    assert rates[0] == FINE_TUNING_RATE and set(rates[first:]) == {LORA_RATE}
    assert len(ranks) - first > 2


def test_the_rank_is_chosen_without_a_planner_too(monkeypatch):
    train = replace(AUTO.train, start_from="model.pt", lora="auto", auto=())
    config = replace(AUTO, model=LARGE, train=replace(train, batch_size=4))
    for available, rank in ((1 << 50, 32), (1 << 20, 4)):
        monkeypatch.setattr("tiny_gpt.planning.memory.available_memory_bytes", lambda _, n=available: n)
        assert with_rank(config, 512, CPU).train.lora_rank == rank
    ranked, whole = with_rank(config, 512, CPU), replace(config, train=replace(config.train, lora="0"))
    assert with_rank(whole, 512, CPU) == whole
    saved = estimate_memory_bytes(whole, 512, CPU) - estimate_memory_bytes(ranked, 512, CPU)
    assert 0.2 < saved / (24 * n_parameters(LARGE, 512)) < 0.4
    assert 0.66 < step_flops(ranked, 512) / step_flops(whole, 512) < 0.75


@pytest.mark.slow
def test_the_plan_compares_the_model_with_a_new_one(config):
    planned = finished(measure_run(config))
    text = "\n".join(plan_report(planned))
    block = f"block size {len(planned.dataset.val) - 1}"  # the model's own is 2,048
    for words in ("start from this model", "a new model", "as it comes", "llama, ", block, "8 of 10 runs"):
        assert words in text, text
    assert 7 < planned.planner.text.pilot_bits_per_byte < 9  # it has learned nothing: 8 bits per byte
    bpe = SimpleNamespace(to_dict=lambda: {"type": "bpe"}, vocab_size=planned.dataset.tokenizer.vocab_size)
    odd = planned._replace(dataset=replace(planned.dataset, tokenizer=bpe))
    assert "only 1.0 bytes in a token" in "\n".join(plan_report(odd)) and "bytes in a token" not in text


def test_a_large_model_gets_a_few_epochs_and_no_dropout():
    chosen, plan = timed("24h", step_s=1.0)
    assert parse_duration(chosen.train.for_) < 24 * 3600
    assert plan.data_epochs == pytest.approx(MAX_LARGE_MODEL_EPOCHS, rel=0.05)
    assert chosen.model.dropout == 0 and chosen.train.optimizer == "adamw" and chosen.model.block_size == 512
    assert chosen.train.batch_size * chosen.model.block_size == 2048


def test_a_small_model_gets_all_of_the_time():
    chosen, plan = timed("24h", replace(LARGE, n_layer=2, d_model=64, n_head=2, d_ff=96), step_s=0.01)
    assert chosen.train.for_ == "24h" and plan.data_epochs > MAX_LARGE_MODEL_EPOCHS


def test_forecasts_fall_from_the_loss_of_the_model_as_it_comes():
    losses = [forecast_further(1.6, epochs).bits_per_byte for epochs in (0, 1, 2, 8)]
    assert losses[0] == 1.6 and losses == sorted(losses, reverse=True)
    last = forecast_further(1.6, 8)
    assert last.low < last.bits_per_byte < last.high < 1.6


def test_a_model_too_large_to_train_is_refused_before_the_folder_is_changed(config, model, tmp_path, monkeypatch):
    counted = replace(config, train=replace(config.train, for_="", steps=1, auto=()), model=SHAPE)
    counted = replace(counted, model=replace(SHAPE, block_size=64), data=replace(counted.data, tokenizer="byte"))
    scarce = SimpleNamespace(available=0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: scarce)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10 << 20)))
    with pytest.raises(OutOfResourcesError, match=r"training .*model\.pt.* GiB") as error:
        list(run(counted))
    assert error.value.code == "not-enough-memory" and not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_into_memory_is_not_read(model, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1000)))
    with pytest.raises(OutOfResourcesError, match=r"model\.pt: the model, [\d,]+ parameters"):
        load_model(model, CPU)


def test_a_known_model_is_proposed_for_english_with_time_and_memory(monkeypatch):
    planner = make_planner()
    hour = replace(FIVE_MINUTES, train=replace(FIVE_MINUTES.train, for_="1h"))
    assert known_model_helps(hour, planner) and not known_model_helps(FIVE_MINUTES, planner._replace(text=LARGE_TEXT))
    german = planner._replace(text=replace(planner.text, english_share=0.2))
    slow = planner._replace(step_time=planner.step_time.scaled(1000))
    assert not known_model_helps(hour, german) and not known_model_helps(hour, slow)
    monkeypatch.setattr(further_training, "available_memory_bytes", lambda device: 1 << 30)
    assert not known_model_helps(hour, planner)
