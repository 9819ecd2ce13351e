"""Runs with stages: pretrainings on other text, or teachers and their students; and what survives a kill in each."""

import dataclasses
import errno
import shutil
from dataclasses import replace

import pytest
import torch

from tests.run.support import CPU, FRENCH, finish, first, interrupt, of, out_dir, same_weights, with_data, with_train
from tiny_gpt.config import BEST_FILE, FINAL_FILE, MODELS_FOLDER, PRETRAINED_FILE, TEACHERS_FOLDER
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.model.shapes import merged_config, n_multiplied
from tiny_gpt.model_io.model_file import load_model, save_model
from tiny_gpt.run import kept_models, teachers
from tiny_gpt.run.evaluator import Evaluator
from tiny_gpt.run.events import Evaluated, Finished, Merged, Prepared, StageBegun, Warned
from tiny_gpt.run.planned_run import measure_run
from tiny_gpt.run.run import run
from tiny_gpt.run.saved_run import find_checkpoint, merge_settings

pytestmark = pytest.mark.usefixtures("save_at_every_step")


@pytest.fixture
def staged(config):
    """Two teachers, then the final model."""
    return with_train(config, steps=34, teachers=2, optimizer="muon", token_noise=0.1)


def weights_of(config, name):
    return load_model(out_dir(config) / name, CPU).model.state_dict()


def test_stages_follow_one_another_and_leave_their_models(staged):
    events = list(run(staged))
    begun = of(StageBegun, events)
    assert [event.name for event in begun] == ["teacher 1 of 2", "teacher 2 of 2", "student"]
    names = f"{TEACHERS_FOLDER}/1.pt", f"{TEACHERS_FOLDER}/2.pt", FINAL_FILE
    heads = [weights_of(staged, name)["head.weight"] for name in names]
    assert all(not torch.equal(a, b) for i, a in enumerate(heads) for b in heads[:i])
    # The last step of each stage is evaluated, so the best model of the run is that of its best stage, or a merged one.
    losses = {event.step: event.val_bits_per_byte for event in of(Evaluated, events)}
    assert {event.step for event in begun[1:]} <= losses.keys()
    merged = [event.val_bits_per_byte for event in of(Merged, events)]
    best = load_model(out_dir(staged) / BEST_FILE, CPU).progress
    assert best.val_bits_per_byte == min([*losses.values(), *merged])


def with_rms_norm(config):
    return replace(config, model=replace(config.model, architecture="qwen3"))


@pytest.fixture
def mergeable(staged, monkeypatch):
    monkeypatch.setattr(kept_models, "MAX_BEHIND", 2.0)  # so few steps make unequal models
    return with_rms_norm(staged)


@pytest.fixture
def merged_wins(monkeypatch):
    """Merged models score as if they were better than any other."""
    monkeypatch.setattr(Evaluator, "score_merged", lambda self, model, beat, is_val=True: 0.5)


def test_merged_models_become_the_best_model_and_stay_it(mergeable, merged_wins, monkeypatch):
    staged, measured = with_train(mergeable, students=2, steps=40), []
    monkeypatch.setattr(
        Evaluator, "record_merging_time", lambda self, *args: measured.append((*args, self.val_windows.n_tokens))
    )
    events = list(run(staged))
    begun, merged = of(StageBegun, events), of(Merged, events)
    # After the last teacher, and at the end.
    assert [event.step for event in merged] == [begun[2].step, 40]
    one = load_model(out_dir(staged) / f"{TEACHERS_FOLDER}/1.pt", CPU).model.config
    best = load_model(out_dir(staged) / BEST_FILE, CPU)
    assert best.model.config == merged_config(one, merged[-1].n_models) and best.progress.val_loss == 0.5
    seconds, n_weight_tokens, n_tokens = measured[0]
    assert seconds > 0 and n_weight_tokens == n_tokens * n_multiplied(merged_config(one, 2), best.model.vocab_size)
    assert load_model(out_dir(staged) / FINAL_FILE, CPU).model.config.d_model == one.d_model
    (finished,) = of(Finished, events)
    assert finished.best_path == out_dir(staged) / BEST_FILE
    # A longer run continues with the small model, and keeps the merged one.
    list(run(with_train(staged, steps=50), resume=True))
    assert load_model(out_dir(staged) / BEST_FILE, CPU).progress.val_loss == 0.5


@pytest.fixture
def pretrained(french_first, monkeypatch):
    """Two models, each pretrained on French and then trained on the own text."""
    monkeypatch.setattr(kept_models, "MAX_BEHIND", 2.0)
    return with_train(with_rms_norm(french_first), pretrainings=2, first_share=0.5, steps=40)


def test_a_pretrained_model_is_trained_further(french_first):
    begun = [event.name for event in of(StageBegun, run(french_first))]
    assert begun == ["pretraining", "your text"]
    before, after = (weights_of(french_first, name)["head.weight"].flatten() for name in (PRETRAINED_FILE, FINAL_FILE))
    assert 0.5 < torch.cosine_similarity(before, after, dim=0) < 0.9999


def test_models_of_several_pretrainings_become_one(pretrained, merged_wins):
    events = list(run(pretrained))
    begun = [event.name for event in of(StageBegun, events)]
    assert begun == ["pretraining 1 of 2", "your text 1 of 2", "pretraining 2 of 2", "your text 2 of 2"]
    first, second = (weights_of(pretrained, f"{MODELS_FOLDER}/{number}.pt")["head.weight"] for number in (1, 2))
    assert not torch.equal(first, second)
    (merged,) = of(Merged, events)
    assert (merged.step, merged.n_models) == (40, 2)
    one = load_model(out_dir(pretrained) / f"{MODELS_FOLDER}/1.pt", CPU).model.config
    assert load_model(out_dir(pretrained) / BEST_FILE, CPU).model.config == merged_config(one, 2)
    # A longer run trains its last model further, and merges it again.
    longer = list(run(with_train(pretrained, steps=60), resume=True))
    assert of(Merged, longer)[-1].n_models == 2
    assert not torch.equal(weights_of(pretrained, f"{MODELS_FOLDER}/2.pt")["head.weight"], second)


def test_the_best_model_of_each_stage_is_kept(pretrained):
    events = list(run(with_train(pretrained, eval_interval=2)))
    begun = [event.step for event in of(StageBegun, events)]
    for number, (start, end) in enumerate([(begun[1], begun[2]), (begun[3], 40)], 1):
        losses = [event.val_loss for event in of(Evaluated, events) if start < event.step <= end]
        kept = load_model(out_dir(pretrained) / f"{MODELS_FOLDER}/{number}.pt", CPU).progress.val_loss
        assert kept == min(losses)


def test_several_pretrainings_killed_in_each_stage_end_like_uninterrupted_ones(pretrained, tmp_path):
    twin = with_train(pretrained, out_dir=str(tmp_path / "twin"))
    expected = finish(twin)
    for after in (4, 14, 24, 34):
        interrupt(pretrained, after, resume=out_dir(pretrained).exists())
    outcome = finish(pretrained, resume=True)
    assert same_weights(outcome.weights, expected.weights) and outcome.rows == expected.rows
    assert same_weights(weights_of(pretrained, BEST_FILE), weights_of(twin, BEST_FILE))


def test_changed_text_of_first_stops_a_resume_until_the_last_pretraining_is_over(pretrained, tmp_path):
    interrupt(pretrained, after=14)
    shutil.rmtree(tmp_path / "cache" / "tokens")
    (tmp_path / "french.txt").write_text(FRENCH + "Encore. " * 50)
    with pytest.raises(BadInputError) as error:
        list(run(pretrained, resume=True))
    assert error.value.code == "first-text-changed"
    (tmp_path / "french.txt").write_text(FRENCH)
    interrupt(pretrained, after=34, resume=True)
    shutil.rmtree(tmp_path / "cache" / "tokens")
    (tmp_path / "french.txt").unlink()
    assert finish(pretrained, resume=True).finished.last_step == 40


def test_models_with_layer_norm_are_not_merged(staged):
    assert staged.model.architecture == "gpt2" and not of(Merged, list(run(staged)))


def test_a_run_killed_around_a_merge_ends_like_an_uninterrupted_one(mergeable, tmp_path):
    twin = with_train(mergeable, out_dir=str(tmp_path / "twin"))
    events = list(run(twin))
    for step in (of(Merged, events)[0].step, of(Merged, events)[0].step + 2):
        interrupt(mergeable, after=step, resume=out_dir(mergeable).exists())
    rest = list(run(mergeable, resume=True))
    assert of(Merged, rest)[-1] == of(Merged, events)[-1]
    for name in (BEST_FILE, FINAL_FILE):
        assert same_weights(weights_of(mergeable, name), weights_of(twin, name))


def test_a_run_killed_in_every_stage_ends_like_an_uninterrupted_one(staged, tmp_path):
    twin = with_train(staged, out_dir=str(tmp_path / "twin"))
    expected = finish(twin)
    interrupt(staged, after=4)
    for after in (9, 10, 11, 19, 20, 25, 30):
        interrupt(staged, after, resume=True)
    outcome = finish(staged, resume=True)
    assert same_weights(outcome.weights, expected.weights) and outcome.rows == expected.rows
    assert same_weights(weights_of(staged, BEST_FILE), weights_of(twin, BEST_FILE))


@pytest.mark.slow
def test_a_student_follows_its_teacher(config):
    """A teacher that knows nothing, put in the place of the trained one, makes the final model nearly as ignorant."""
    config = with_train(config, steps=100, learning_rate=0.01, teachers=1, teacher_weight=0.95)
    interrupt(config, after=60)
    followed = finish(config, resume=True).rows[-1]
    loaded = load_model(out_dir(config) / TEACHERS_FOLDER / "1.pt", CPU)
    with torch.no_grad():
        loaded.model.head.weight.zero_()
    ignorant = with_train(config, out_dir=config.train.out_dir + "-ignorant")
    interrupt(ignorant, after=60)
    path = out_dir(ignorant) / TEACHERS_FOLDER / "1.pt"
    save_model(path, loaded.model, loaded.tokenizer, config, loaded.progress)
    misled = finish(ignorant, resume=True).rows[-1]
    val_loss = [field.name for field in dataclasses.fields(Evaluated)].index("val_loss")
    assert misled[val_loss] > followed[val_loss] + 0.5


def test_a_second_student_learns_from_the_first_too(staged, monkeypatch):
    monkeypatch.setattr(kept_models, "MAX_BEHIND", 100.0)
    events = list(run(with_train(staged, students=2, steps=40)))
    begun = of(StageBegun, events)
    assert [event.name for event in begun[-2:]] == ["student 1 of 2", "student 2 of 2"]
    assert "2 teachers" in begun[-2].description and "3 teachers" in begun[-1].description


def test_predictions_are_computed_once_for_all_students_as_far_as_memory_allows(staged, monkeypatch, tmp_path):
    monkeypatch.setattr(kept_models, "MAX_BEHIND", 100.0)
    monkeypatch.setattr(kept_models, "N_LAST_STUDENTS", 1)
    predict, calls, outcomes, n_calls = teachers.predict, [], [], []
    monkeypatch.setattr(teachers, "predict", lambda *args: (calls.append(args), predict(*args))[1])
    monkeypatch.setattr(teachers, "prediction_bytes", lambda *args: 1)
    for n_remembered in (100, 1, 0):  # models
        monkeypatch.setattr(teachers, "MAX_REMEMBERED_BYTES", n_remembered)
        calls.clear()
        outcomes.append(finish(with_train(staged, students=4, steps=60, out_dir=str(tmp_path / str(n_remembered)))))
        n_calls.append(len(calls))
    # Two teachers of the first student, three of each later one: the student before it teaches, too.
    n_batches = n_calls[0] // (2 + 1 + 1 + 1)
    assert n_batches > 1
    assert n_calls == [5 * n_batches, (2 + 2 + 2 + 2) * n_batches, (2 + 3 + 3 + 3) * n_batches]
    assert all(same_weights(outcomes[0].weights, outcome.weights) for outcome in outcomes[1:])


def test_teachers_that_are_far_behind_are_not_learned_from(staged, monkeypatch):
    monkeypatch.setattr(kept_models, "MAX_BEHIND", 1.0)
    assert "from a teacher," in of(StageBegun, run(staged))[-1].description


def test_a_student_without_teachers_learns_from_the_text_alone(staged):
    interrupt(staged, after=19)
    for number in (1, 2):
        (out_dir(staged) / TEACHERS_FOLDER / f"{number}.pt").unlink(missing_ok=True)
    (out_dir(staged) / TEACHERS_FOLDER).rmdir()
    (out_dir(staged) / TEACHERS_FOLDER).write_text("in the way")  # of the second teacher
    events = list(run(staged, resume=True))
    (student,) = of(StageBegun, events)
    assert "from the text alone" in student.description
    assert any("no teacher can be used" in event.text for event in of(Warned, events))
    assert of(Finished, events)[0].last_step == 34


@pytest.mark.parametrize("is_header_whole", [False, True])
def test_a_damaged_teacher_is_left_out(staged, monkeypatch, is_header_whole):
    monkeypatch.setattr(kept_models, "MAX_BEHIND", 100.0)
    interrupt(staged, after=30)
    path = out_dir(staged) / TEACHERS_FOLDER / "1.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # of a weight
    path.write_bytes(content if is_header_whole else b"damaged")
    events = list(run(staged, resume=True))
    assert any("left out" in event.text for event in of(Warned, events))
    (out_dir(staged) / TEACHERS_FOLDER / "2.pt").write_bytes(content)
    assert any("no teacher can be used" in warning for warning in finish(with_train(staged, steps=40), True).warnings)


def test_a_finished_run_with_stages_is_extended_in_its_last_one(staged):
    finish(staged)
    longer = finish(with_train(staged, steps=50), resume=True)
    assert longer.finished.last_step == 50
    assert not of(StageBegun, list(run(with_train(staged, steps=60), resume=True)))


@pytest.mark.parametrize("command", [run, measure_run])
def test_other_text_first_excludes_an_initial_model_and_teachers(initial_config, staged, tmp_path, command):
    for config, code in (initial_config, "first-and-start-from"), (staged, "teachers-and-first"):
        with pytest.raises(UsageError) as error:
            list(command(with_data(config, first=(str(tmp_path / "french.txt"),))))
        assert error.value.code == code


@pytest.mark.slow
def test_a_timed_run_has_all_its_stages_and_ends_on_time(staged):
    config = with_train(staged, steps=0, for_="12s", schedule="wsd", min_learning_rate=0.0)
    events = list(run(config))
    assert [event.name for event in of(StageBegun, events)] == ["teacher 1 of 2", "teacher 2 of 2", "student"]
    assert abs(events[-1].left_s) < 10 and first(Prepared, events).left_s > 0


def test_settings_for_other_text_cannot_be_added_on_resume(config):
    interrupt(config, after=3)
    for changed in with_train(config, first_share=0.5), with_data(config, first=("french.txt",)):
        with pytest.raises(BadInputError) as error:
            list(run(changed, resume=True))
        assert error.value.code == "model-or-optimizer-changed"
    assert finish(with_data(config, first=("none",)), resume=True).finished


def test_runs_of_earlier_versions_that_pretrained_teachers_are_refused(french_first):
    interrupt(french_first, after=4)
    saved = find_checkpoint(out_dir(french_first))
    description = replace(saved.description, config=with_train(saved.description.config, teachers=2))
    with pytest.raises(BadInputError) as error:
        merge_settings(replace(saved, description=description), french_first)
    assert error.value.code == "stages-of-earlier-version"


def test_a_full_disk_costs_a_run_the_models_of_its_stages_at_most(french_first, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_models, "save_model", full)
    outcome = finish(french_first)
    assert outcome.finished.last_step == 34 and any("training continues" in line for line in outcome.warnings)
    assert not (out_dir(french_first) / PRETRAINED_FILE).exists()
