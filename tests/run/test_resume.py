"""Resumed runs equal uninterrupted ones, and a run in this process survives faults.

tests/faults/ has kills, full disks and signals with real processes.
"""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tiny_gpt.cli.process import to_known_error
from tiny_gpt.config import (
    BEST_FILE,
    CONFIG_FILE,
    FINAL_FILE,
    DataConfig,
    ModelConfig,
    ReliabilityConfig,
    RunConfig,
    TrainConfig,
)
from tiny_gpt.errors import BadInputError, OutOfResourcesError, RestartRequestedError, UsageError
from tiny_gpt.host import monitor
from tiny_gpt.host.battery import Battery
from tiny_gpt.model.gpt import GPT, one_hot_embed
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.planning import autotune, autotune_cache
from tiny_gpt.planning.autotune import Workload
from tiny_gpt.planning.types import BackendChoice, Candidate
from tiny_gpt.run import clock, description, saved_run, start
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.events import Checkpointed, Evaluated, Prepared, StepDone, Warned
from tiny_gpt.run.folders import config_of
from tiny_gpt.run.run import run

CPU = torch.device("cpu")
TEXT = "the cat sat on a mat and said hello to every dog in town.\n" * 60


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def config(text, tmp_path):
    return RunConfig(
        ModelConfig(n_layer=1, n_head=2, d_model=16, d_ff=32, block_size=8, dropout=0.1),
        DataConfig((str(text),)),
        TrainConfig(
            epochs=3,
            iters_per_epoch=10,
            batch_size=8,
            eval_interval=5,
            learning_rate=0.01,
            warmup_steps=3,
            device="cpu",
            precision="fp32",
            backend="eager",
            out_dir=str(tmp_path / "run"),
        ),
        ReliabilityConfig(checkpoint_minutes=1e-9, keep_awake=False),
    )


@pytest.fixture(autouse=True)
def save_at_every_step(monkeypatch):
    monkeypatch.setattr(clock, "MAX_OVERHEAD", 1e9)


def with_train(config, **changes):
    return replace(config, train=replace(config.train, **changes))


def with_model(config, **changes):
    return replace(config, model=replace(config.model, **changes))


def cut_off(config, after, is_resumed=False):
    """Begin a run and drop it after that step's events, as a kill does."""
    events = run(config, is_resumed)
    for event in events:
        if isinstance(event, Checkpointed) and event.step == after:
            break
    events.close()


def end(config, is_resumed=False):
    """(the weights of the last step, all evaluations, Finished)"""
    events = list(run(config, is_resumed))
    prepared = next(event for event in events if isinstance(event, Prepared))
    evaluated = prepared.history + [event for event in events if isinstance(event, Evaluated)]
    rows = [dataclasses.astuple(replace(row, tokens_per_s=0, elapsed_s=0)) for row in evaluated]
    weights = load_model(Path(config.train.out_dir) / FINAL_FILE, CPU).model.state_dict()
    return weights, rows, events[-1]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def warnings_in(events):
    return [event.text for event in events if isinstance(event, Warned)]


# --- exactly ---


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(architecture="qwen3"),
        dict(architecture="qwen3", optimizer="muon"),
        dict(precision="bf16"),
        dict(grad_accum_steps=4),
        dict(backend="fused"),
        dict(backend="auto", precision="auto"),
    ],
    ids=["gpt2", "qwen3", "muon", "bf16", "in parts", "fused", "as measured"],
)
def test_a_run_cut_off_again_and_again_ends_as_the_one_that_never_was(config, tmp_path, changes):
    model = {name: changes.pop(name) for name in list(changes) if name == "architecture"}
    config = with_model(with_train(config, **changes), **model)
    weights, rows, finished = end(with_train(config, out_dir=str(tmp_path / "reference")))
    cut_off(config, after=3)
    for after in (4, 5, 10, 17, 18, 29):
        cut_off(config, after, is_resumed=True)
    again, rows_again, finished_again = end(config, is_resumed=True)
    assert same(weights, again) and rows == rows_again
    assert finished_again.best_val_loss == finished.best_val_loss and finished_again.incidents == []
    assert len(rows) == 6 and [row[0] for row in rows] == [5, 10, 15, 20, 25, 30]


def test_time_and_incidents_count_on(config, monkeypatch):
    cut_off(config, after=5)
    state = json.loads(next(Path(config.train.out_dir).glob("checkpoints/step-00000005/state.json")).read_text())
    finished = end(config, is_resumed=True)[2]
    assert finished.elapsed_s > state["run"]["train_s"] > 0


def test_a_finished_run_is_not_trained_again_but_can_be_lengthened(config):
    weights, rows, _ = end(config)
    again, rows_again, finished = end(config, is_resumed=True)
    assert same(weights, again) and rows == rows_again
    longer, more_rows, finished = end(with_train(config, epochs=4), is_resumed=True)
    assert finished.last_step == 40 and not same(weights, longer)
    assert more_rows[: len(rows)] == rows and [row[0] for row in more_rows[len(rows) :]] == [35, 40]
    assert "--epochs was 3, is now 4" in finished.incidents


# --- from what is there ---


def test_a_damaged_checkpoint_is_set_aside_named_and_the_one_before_taken(config, tmp_path):
    weights = end(with_train(config, out_dir=str(tmp_path / "reference")))[0]
    cut_off(config, after=12)
    folder = Path(config.train.out_dir) / "checkpoints"
    (folder / "step-00000012" / "model.safetensors").write_bytes(b"nothing")
    events = list(run(config, True))
    assert next(event for event in events if isinstance(event, Prepared)).steps_done == 11
    assert any("step-00000012 is damaged (model.safetensors has 7 bytes" in line for line in warnings_in(events))
    assert (folder / "set-aside" / "step-00000012").is_dir()
    assert same(weights, load_model(Path(config.train.out_dir) / FINAL_FILE, CPU).model.state_dict())


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_best_model_that_is_gone_or_damaged_is_made_anew(config, content):
    cut_off(config, after=25)
    best = Path(config.train.out_dir) / BEST_FILE
    before = load_model(best, CPU)
    best.unlink()
    if content is not None:
        best.write_bytes(content)
    events = run(config, True)
    lines = []
    for event in events:
        if isinstance(event, Warned):
            lines.append(event.text)
        if isinstance(event, StepDone):
            break
    events.close()
    assert any(f"rebuilt from the checkpoint of step {before.progress.step}" in line for line in lines)
    after = load_model(best, CPU)
    assert after.progress == before.progress and same(after.model.state_dict(), before.model.state_dict())


def test_a_better_model_saved_after_the_last_checkpoint_is_not_replaced_by_a_worse_one(config):
    cut_off(config, after=12)
    best = Path(config.train.out_dir) / BEST_FILE
    content = torch.load(best, weights_only=True)
    content["progress"]["val_loss"] = 0.001
    torch.save(content, best)
    finished = end(config, is_resumed=True)[2]
    assert load_model(best, CPU).progress.val_loss == 0.001 and finished.best_epoch == content["progress"]["epoch"]


def test_config_and_metrics_that_were_lost_are_there_again(config):
    cut_off(config, after=12)
    (Path(config.train.out_dir) / CONFIG_FILE).write_text("{")
    end(config_of(Path(config.train.out_dir)), is_resumed=True)
    assert json.loads((Path(config.train.out_dir) / CONFIG_FILE).read_text())["epochs"] == 3


def test_a_text_that_is_gone_is_learned_from_its_stored_tokens(config, text, tmp_path):
    weights = end(with_train(config, out_dir=str(tmp_path / "reference")))[0]
    cut_off(config, after=7)
    text.unlink()
    again, _, finished = end(config, is_resumed=True)
    assert same(weights, again)
    assert any("the text cannot be read again" in line for line in finished.incidents)


# --- or not ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: with_model(c, n_layer=2, d_ff=64), ["--n-layer was 1, is now 2", "--d-ff was 32, is now 64"]),
        (lambda c: with_model(c, architecture="qwen3"), ["--architecture was gpt2, is now qwen3"]),
        (lambda c: with_train(c, optimizer="muon"), ["--optimizer was adamw, is now muon"]),
        (lambda c: replace(c, data=replace(c.data, tokenizer="bpe")), ["vocabulary size was 256", "--new"]),
        (lambda c: replace(c, data=replace(c.data, val_fraction=0.2)), ["validation tokens"]),
    ],
)
def test_another_model_optimizer_tokenizer_or_split_is_refused_with_the_difference(config, change, words):
    cut_off(config, after=5)
    before = sorted(Path(config.train.out_dir).rglob("*"))
    with pytest.raises(BadInputError) as refused:
        list(run(change(config), True))
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert sorted(Path(config.train.out_dir).rglob("*")) == before


def test_another_text_is_refused_with_the_difference(config, text):
    cut_off(config, after=5)
    text.write_text(TEXT.replace("cat", "cow"))
    with pytest.raises(BadInputError, match=r"text's sha256 was .*, is now") as error:
        list(run(config, True))
    assert error.value.code == "text-or-tokenizer-changed"
    text.write_text(TEXT + TEXT)
    with pytest.raises(BadInputError, match=r"training tokens was .*, is now"):
        list(run(config, True))
    text.write_text(TEXT)
    assert end(config, is_resumed=True)[2].last_step == 30


@pytest.mark.parametrize("name", ["torch", "device", "threads", "processor"])
def test_another_machine_is_told_and_goes_on(config, monkeypatch, name):
    cut_off(config, after=5)
    ours = description.machine_fingerprint(CPU)
    monkeypatch.setattr("tiny_gpt.run.resume.machine_fingerprint", lambda device: {**ours, name: "another"})
    finished = end(config, is_resumed=True)[2]
    assert any(f"{name} was {ours[name]}, is now another" in line for line in finished.incidents)


def taken(config):
    """The path and precision that the run's config.json tells."""
    values = json.loads((Path(config.train.out_dir) / CONFIG_FILE).read_text())
    return values["backend"], values["precision"]


def test_a_run_keeps_the_path_that_was_measured_when_it_began(config, monkeypatch):
    config = with_train(config, backend="auto", precision="auto")
    monkeypatch.setattr(
        start, "choose_backend", lambda *_: BackendChoice(Candidate("eager", "bf16"), {"eager bf16": 1.0})
    )
    cut_off(config, after=5)
    assert taken(config) == ("eager", "bf16")
    monkeypatch.undo()
    monkeypatch.setattr(autotune, "time_candidates", lambda *_: pytest.fail("measured again"))
    finished = end(config, is_resumed=True)[2]
    assert taken(config) == ("eager", "bf16") and finished.incidents == []


def test_on_a_machine_without_its_path_a_run_goes_on_with_another(config, monkeypatch):
    cut_off(with_train(config, backend="fused"), after=5)
    monkeypatch.setitem(autotune.AUTO_BACKENDS, "cpu", ("eager",))
    finished = end(with_train(config, backend="fused"), is_resumed=True)[2]
    message = "--backend fused does not exist on cpu; choose eager, compiled or auto; this run continues with eager"
    assert finished.last_step == 30 and sum(line.startswith(message) for line in finished.incidents) == 1
    assert taken(config)[0] == "eager"


def test_where_its_path_is_broken_a_run_goes_on_with_another(config, monkeypatch):
    cut_off(with_train(config, backend="fused"), after=5)

    def broken():
        raise ImportError("no numba")

    monkeypatch.setattr(autotune_cache, "read_choice", lambda *_: None)
    monkeypatch.setattr(Workload, "trials", lambda self, found: dict.fromkeys(found, broken))
    finished = end(with_train(config, backend="fused"), is_resumed=True)[2]
    message = "--backend fused cannot be used here: no numba; this run continues with eager"
    assert any(line.startswith(message) for line in finished.incidents)


def test_on_another_machine_where_bf16_is_slow_a_run_goes_on_without_it(config, monkeypatch):
    config = with_train(config, precision="bf16")
    cut_off(config, after=5)
    monkeypatch.setattr("tiny_gpt.device._bf16_is_faster", lambda device: False)
    cut_off(config, after=6, is_resumed=True)
    assert taken(config) == ("eager", "bf16"), "the same machine may be busy for a moment"
    monkeypatch.setattr(description, "processor_name", lambda: "another")
    finished = end(config, is_resumed=True)[2]
    assert any("--precision bf16: slow here; this run continues with" in line for line in finished.incidents)
    assert taken(config)[1] == "fp32"


def test_a_path_asked_for_now_is_taken_or_refused(config):
    cut_off(config, after=5)
    with pytest.raises(UsageError, match="--backend cuda_graph does not exist on cpu"):
        list(run(with_train(config, backend="cuda_graph"), True))
    finished = end(with_train(config, backend="fused", verbose=True), is_resumed=True)[2]
    assert taken(config) == ("fused", "fp32") and finished.incidents == ["--backend was eager, is now fused"]


def test_a_run_of_a_version_with_one_path_keeps_to_it(config, monkeypatch):
    to_flat = RunConfig.to_flat

    def earlier(self):
        return {name: value for name, value in to_flat(self).items() if name not in ("backend", "verbose")}

    with monkeypatch.context() as patch:
        patch.setattr(RunConfig, "to_flat", earlier)
        cut_off(with_train(config, backend="eager"), after=5)
    end(with_train(config, backend="auto"), is_resumed=True)
    assert taken(config) == ("eager", "fp32")


def test_a_checkpoint_of_another_version_is_not_taken_for_damage(config, monkeypatch):
    """Whole, with a setting that this version does not know: it is named, and every checkpoint stays."""
    to_flat = RunConfig.to_flat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConfig, "to_flat", lambda self: {**to_flat(self), "n_dreams": 3})
        cut_off(config, after=5)
    steps = CheckpointStore(Path(config.train.out_dir)).steps()
    for read in (lambda: list(run(config, True)), lambda: config_of(Path(config.train.out_dir))):
        with pytest.raises(BadInputError, match="unknown setting 'n_dreams'"):
            read()
    assert CheckpointStore(Path(config.train.out_dir)).steps() == steps


def test_two_processes_do_not_train_in_one_folder(config):
    events = run(config)
    next(event for event in events if isinstance(event, StepDone))
    with pytest.raises(UsageError) as error:
        list(run(config, True))
    assert error.value.code == "run-folder-in-use" and config.train.out_dir in str(error.value)
    events.close()
    assert end(config, is_resumed=True)[2].last_step == 30


def test_a_checkpoint_of_giant_dimensions_is_refused_before_memory_is_taken(config, monkeypatch):
    cut_off(config, after=2)
    saved = saved_run.find_checkpoint(Path(config.train.out_dir))
    giant = with_model(saved.description.config, n_layer=500, d_model=1 << 20, d_ff=1 << 22)
    monkeypatch.setattr(
        "tiny_gpt.run.saved_run.find_checkpoint",
        lambda _: replace(saved, description=replace(saved.description, config=giant)),
    )
    monkeypatch.setattr("tiny_gpt.run.prepared_run.GPT", lambda *_: pytest.fail("built"))
    with pytest.raises(BadInputError) as error:
        list(run(config, True))
    assert error.value.code == "checkpoint-of-another-model"


# --- memory, battery, watchdog ---


def out_of_memory_above(monkeypatch, n_blocks, failure):
    """From the 7th step on, more than `n_blocks` blocks do not fit."""
    losses, n_calls = GPT.losses, [0]

    def limited(self, ids_BT, targets_BT):
        n_calls[0] += torch.is_grad_enabled()
        if n_calls[0] > 6 and len(ids_BT) > n_blocks:
            raise failure
        return losses(self, ids_BT, targets_BT)

    monkeypatch.setattr(GPT, "losses", limited)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB, max allowed: 9.07 GB)."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "mps", "cpu", "python"],
)
def test_where_memory_runs_out_the_same_step_is_done_in_smaller_parts(config, tmp_path, monkeypatch, failure):
    config = with_model(config, dropout=0.0)
    rows = end(with_train(config, out_dir=str(tmp_path / "reference")))[1]
    out_of_memory_above(monkeypatch, 3, failure)
    _, rows_again, finished = end(config)
    for row, again in zip(rows, rows_again, strict=True):
        assert row == pytest.approx(again, rel=1e-4)
    assert sum("4 blocks are computed at once instead of 8" in line for line in finished.incidents) == 1
    assert sum("2 blocks are computed at once instead of 4" in line for line in finished.incidents) == 1
    cut_off(with_train(config, out_dir=str(tmp_path / "third")), after=12)
    monkeypatch.undo()
    monkeypatch.setattr(clock, "MAX_OVERHEAD", 1e9)
    state = CheckpointStore(tmp_path / "third").newest()[0].path / "state.json"
    assert json.loads(state.read_text())["run"]["n_micro_batches"] == 4, "a resumed run does not try in vain"


def test_where_not_even_one_block_fits_it_ends(config, monkeypatch):
    out_of_memory_above(monkeypatch, 0, MemoryError())
    with pytest.raises(MemoryError):
        list(run(config))
    assert isinstance(to_known_error(MemoryError()), OutOfResourcesError)


def test_on_a_low_battery_it_saves_pauses_and_goes_on_when_plugged_in(config, tmp_path, monkeypatch):
    weights = end(with_train(config, out_dir=str(tmp_path / "reference")))[0]
    batteries = iter([(True, 90)] * 8 + [(False, 15)] * 6 + [(True, 15)] * 1000)

    def battery():
        power_plugged, percent = next(batteries)
        return SimpleNamespace(power_plugged=power_plugged, percent=percent)

    monkeypatch.setattr(monitor, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(monitor, "BATTERY_INTERVAL_S", 0.0)
    monkeypatch.setattr(monitor, "Battery", lambda _: Battery(battery))
    monkeypatch.setattr(monitor, "PAUSE_POLL_S", 0.01)
    events = list(run(config))
    lines = warnings_in(events)
    paused = next(i for i, event in enumerate(events) if isinstance(event, Warned) and "paused" in event.text)
    assert "battery at 15%" in events[paused].text
    assert isinstance(events[paused - 1], Checkpointed) and events[paused - 1].step == events[paused].step
    assert "training continues" in lines
    assert any(line.startswith("paused once on a low battery") for line in events[-1].incidents)
    assert same(weights, load_model(Path(config.train.out_dir) / FINAL_FILE, CPU).model.state_dict())


def test_when_the_watchdog_asks_it_saves_and_makes_way(config, tmp_path, monkeypatch):
    weights = end(with_train(config, out_dir=str(tmp_path / "reference")))[0]
    heart = SimpleNamespace(n_beats=0, restart_requested=False)

    def beat():
        heart.n_beats += 1
        heart.restart_requested = heart.n_beats > 40

    heart.beat = beat
    monkeypatch.setattr(monitor, "heartbeat", lambda: heart)
    with pytest.raises(RestartRequestedError) as asked:
        list(run(config))
    assert asked.value.exit_code == 75
    heart.n_beats = -1000
    monkeypatch.setenv("TINY_GPT_RESTART_REASON", "the training process grew from 1.0 to 3.0 GB of memory")
    again, _, finished = end(config, is_resumed=True)
    assert same(weights, again)
    assert finished.incidents == ["restarted: the training process grew from 1.0 to 3.0 GB of memory"]


def test_the_deterministic_embedding_is_the_same_function():
    torch.manual_seed(0)
    embedding, ids = torch.nn.Embedding(7, 5), torch.randint(7, (3, 11))
    gradients = []
    for embed in (embedding, lambda ids: one_hot_embed(embedding, ids)):
        embedding.zero_grad()
        out = embed(ids)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        gradients.append((out.detach(), embedding.weight.grad.clone()))
    for mine, its in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, its)
