"""The planner's calibration, and the tokenizer of the recipe `auto`."""

import itertools
from dataclasses import replace

import pytest

from tests.planning.support import FIVE_MINUTES, make_planner, step_time
from tiny_gpt.config import DataConfig
from tiny_gpt.config.recipes import RECIPES
from tiny_gpt.data.choose_tokenizer import auto_tokenizer
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.planning import planner as planner_module
from tiny_gpt.planning import stage_planner
from tiny_gpt.planning.planner import MAX_TEACHER_EPOCHS
from tiny_gpt.planning.throughput import StepTimeModel
from tiny_gpt.planning.types import OtherText, TextStats
from tiny_gpt.training.stages import FIRST_SHARE, STUDENT_LENGTH


def for_time(time):
    """The recipe `auto` with this time budget."""
    return replace(RECIPES["auto"], train=replace(RECIPES["auto"].train, for_=time))


@pytest.fixture
def measured(monkeypatch):
    """The configs whose steps were measured, on a machine half as fast as predicted."""
    configs = []

    def twice_as_long(config, *_):
        configs.append(config)
        return 2 * step_time(config)

    monkeypatch.setattr(planner_module, "mean_known_step_s", twice_as_long)
    return configs


def test_calibration_measures_the_chosen_model(measured):
    planner = make_planner(vocab_size=4096)
    calibrated = planner.calibrated(FIVE_MINUTES)
    (config,) = measured
    assert calibrated.step_time(config) == pytest.approx(2 * step_time(config))
    assert (config.train.backend, config.train.precision) == ("fused", "bf16")
    assert calibrated.plan(FIVE_MINUTES)[1].steps < planner.plan(FIVE_MINUTES)[1].steps


def test_steps_of_seconds_are_not_calibrated(measured):
    slow = make_planner()._replace(step_time=StepTimeModel(5.0, 2e-12, 4096))
    assert slow.calibrated(FIVE_MINUTES) is slow and measured == []


def test_auto_uses_characters_for_tiny_texts_only(tmp_path):
    assert auto_tokenizer(10_000) == "char" and auto_tokenizer(10_000_000) == "bpe"
    path = tmp_path / "text.txt"
    path.write_text("a little text. " * 200)
    dataset = finish(prepare(DataConfig((str(path),), tokenizer="auto"), 8))
    assert dataset.tokenizer.to_dict()["type"] == "char"


def test_a_night_has_teachers_and_students_and_given_numbers_stay():
    planner, night = make_planner(), replace(RECIPES["auto"], train=replace(RECIPES["auto"].train, for_="6h"))
    train = planner.plan(night)[0].train
    assert train.teachers > 1 and train.students > 1 and train.first_share == 0
    auto = tuple(name for name in night.train.auto if name != "students")
    given = replace(night, train=replace(night.train, students=2, auto=auto))
    assert planner.plan(given)[0].train.students == 2
    five_minutes = replace(night, train=replace(night.train, for_="5m"))
    assert planner.plan(five_minutes)[0].train.teachers == 0


def test_a_long_run_begins_with_related_text_where_it_is_at_hand():
    alone = make_planner()
    related = alone._replace(other=OtherText(("package-docs",), 400_000, 50_000, 2048, 6_000_000))
    chosen, plan = related.plan(for_time("2h"))
    assert chosen.data.first == plan.first == ("package-docs",) and chosen.train.first_share == plan.first_share > 0
    assert plan.forecast.bits_per_byte < alone.plan(for_time("2h"))[1].forecast.bits_per_byte
    for without in (for_time("8m"), replace(for_time("2h"), data=DataConfig(first=("none",)))):
        assert related.plan(without)[0].train.first_share == 0


def test_several_models_are_pretrained_where_their_merger_is_expected_to_be_better():
    """Foreign text helps a small text the less, the more it is read; related text helps on."""
    planner, text = make_planner(), replace(make_planner().text, train_bytes=135_000, train_tokens=66_000)
    planner = planner._replace(text=text, other=OtherText(("novels",), 37_000, 4_000, 2048, 12_000_000, 1.15))
    named = replace(for_time("1h"), data=DataConfig(first=("novels",)))
    chosen, plan = planner.plan(named)
    assert chosen.train.pretrainings == plan.pretrainings == plan.merged > 1
    auto = tuple(name for name in named.train.auto if name != "pretrainings")
    one = replace(named, train=replace(named.train, pretrainings=1, auto=auto))
    assert plan.forecast.bits_per_byte < 1.005 * planner.plan(one)[1].forecast.bits_per_byte
    related = planner._replace(text=replace(text, train_bytes=8_000_000, train_tokens=2_500_000))
    related = related._replace(other=OtherText(("novels",), 2_500_000, 250_000, 2048, 12_000_000, 1.01))
    assert related.plan(named)[1].pretrainings == 1


def test_little_memory_leaves_a_plan_with_other_text(monkeypatch):
    planner = make_planner()._replace(other=OtherText(("novels",), 40_000, 5_000, 2048, 12_000_000))
    named = replace(for_time("1h"), data=DataConfig(first=("novels",)))
    for gib in (0.7, 1.0, 1.3):
        monkeypatch.setattr(stage_planner, "available_memory_bytes", lambda _, n=gib * 2**30: n)
        _, plan = planner.plan(named)
        assert plan.memory_bytes < gib * 2**30 and plan.pretrainings >= 1


def test_sequences_fit_into_each_of_two_texts():
    tiny = make_planner()._replace(text=replace(make_planner().text, train_bytes=300, train_tokens=120))
    named = replace(for_time("1h"), data=DataConfig(first=("novels",)))
    for own, val, other in ((100, 5_000, 6_000_000), (4_000, 5_000, 90)):
        chosen, _ = tiny._replace(other=OtherText(("novels",), own, val, 2048, other)).plan(named)
        assert chosen.model.block_size < min(own, val, other) and chosen.train.first_share > 0


def test_other_text_counts_in_a_plan_of_steps():
    named = replace(for_time("1h"), data=DataConfig(first=("novels",)))
    named = replace(named, train=replace(named.train.without_budget(), steps=2000))
    planner = make_planner()._replace(other=OtherText(("novels",), 400_000, 50_000, 2048, 6_000_000))
    chosen, plan = planner.plan(named)
    assert chosen.train.first_share == plan.first_share == FIRST_SHARE and plan.steps == 2000
    counted = replace(named, train=replace(named.train, own_data_epochs=3.0))
    assert planner.plan(counted)[1].data_epochs == pytest.approx(3, rel=0.01)


def test_a_small_text_is_not_read_more_often_after_a_pretraining_the_longer_the_run():
    planner = make_planner()._replace(other=OtherText(("novels",), 40_000, 5_000, 2048, 60_000_000))
    named = replace(for_time("1h"), data=DataConfig(first=("novels",)))
    plans = [planner.plan(replace(named, train=replace(named.train, for_=time))) for time in ("1h", "6h", "24h")]
    steps = [plan.data_epochs * 40_000 / config.train.batch_size / config.model.block_size for config, plan in plans]
    few = [
        n <= 2 * planner_module.MIN_FINE_TUNING_STEPS or plan.data_epochs <= 6.1
        for n, (_, plan) in zip(steps, plans, strict=True)
    ]
    assert all(few) and all(config.train.own_data_epochs for config, _ in plans)
    asked = replace(named, train=replace(named.train, own_data_epochs=2.0))
    assert planner.plan(asked)[1].data_epochs == pytest.approx(2, rel=0.05)
    given = replace(named, train=replace(named.train, first_share=0.5))
    assert planner.plan(given)[0].train.own_data_epochs == 0


def test_easier_text_is_not_taken_for_more_related():
    planner, named = make_planner(), replace(for_time("1h"), data=DataConfig(first=("novels",)))
    same, easier = (OtherText(("novels",), 400_000, 50_000, 2048, 6_000_000, distance) for distance in (1.0, 0.5))
    losses = [planner._replace(other=other).plan(named)[1].forecast.bits_per_byte for other in (same, easier)]
    assert losses[0] == losses[1]


def test_the_model_of_a_pretraining_suits_the_other_text_and_its_time():
    tiny = make_planner()._replace(text=replace(make_planner().text, train_bytes=36_000, train_tokens=15_000))
    related = tiny._replace(other=OtherText(("package-docs",), 12_000, 1_500, 2048, 6_000_000))
    alone, pretrained = (planner.plan(for_time("6h"))[0] for planner in (tiny, related))
    assert n_parameters(pretrained.model, 2048) > 2 * n_parameters(alone.model, 512)
    assert pretrained.model.dropout > 0 and pretrained.train.auto == ()


def test_plenty_of_other_text_does_not_make_the_model_too_large_for_the_own():
    text = TextStats(11_200_000, 3_600_000, 300_000, 2048, 2.06)
    other = OtherText(("package-source",), 3_700_000, 314_000, 2048, 26_400_000, distance=1.11)
    planner = make_planner()._replace(text=text, other=other, step_time=StepTimeModel(0.064, 3.085e-12, 2048))
    named = replace(for_time("6h"), data=DataConfig(first=other.sources))
    losses = [planner.plan(replace(named, train=replace(named.train, for_=time)))[1].forecast for time in ("6h", "24h")]
    assert losses[1].bits_per_byte < losses[0].bits_per_byte


def test_a_teacher_has_time_for_some_hundred_steps():
    planner, short = make_planner(), replace(RECIPES["auto"], train=replace(RECIPES["auto"].train, for_="20s"))
    tiny = planner._replace(text=replace(planner.text, train_bytes=900, train_tokens=900))
    slow = tiny._replace(step_time=tiny.step_time.scaled(100))
    assert slow.plan(short)[0].train.teachers == 0 and slow.plan(short)[0].train.first_share == 0
    assert tiny.plan(short)[0].train.teachers > 0


@pytest.mark.parametrize("n_bytes", [135_000, 1_000_000])
@pytest.mark.parametrize("slowness", [0.1, 1, 50])
def test_more_time_is_expected_to_give_a_better_model(n_bytes, slowness):
    planner, night = make_planner(), RECIPES["auto"]
    text = replace(planner.text, train_bytes=n_bytes, train_tokens=n_bytes // 2)
    other = OtherText(("package-docs",), 2 * n_bytes // 5, n_bytes // 25, 2048, 6_000_000)
    planner = planner._replace(text=text, step_time=planner.step_time.scaled(slowness), other=other)
    times = ("2m", "20m", "1h", "2h", "6h", "24h")
    plans = [planner.plan(replace(night, train=replace(night.train, for_=time)))[1] for time in times]
    losses = [plan.forecast.bits_per_byte for plan in plans]
    # Sizes and stages change in jumps; and on a fast machine the smallest text has given all before the night is over.
    assert all(longer < shorter * 1.005 for shorter, longer in itertools.pairwise(losses)), losses
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize("n_tokens", [40_000, 500_000])
def test_models_that_are_merged_have_as_much_time_as_they_can_use(n_tokens):
    """Also where the settings that suit the whole time are not those that suit what is used of it."""
    planner = make_planner()
    planner = planner._replace(text=replace(planner.text, train_bytes=2 * n_tokens, train_tokens=n_tokens))
    alone = [replace(for_time(time), data=DataConfig(first=("none",))) for time in ("1h", "6h", "12h", "24h")]
    plans = [planner.plan(config)[1] for config in alone]
    losses = [plan.forecast.bits_per_byte for plan in plans]
    assert all(longer < shorter * 1.001 for shorter, longer in itertools.pairwise(losses)), losses
    *_, last = plans
    n_passes = last.data_epochs / (last.teachers + STUDENT_LENGTH * last.students)
    assert last.teachers > 2 and last.students == 64 and 15 < n_passes <= MAX_TEACHER_EPOCHS


def test_batches_after_a_pretraining_have_whole_micro_batches():
    planner = make_planner()._replace(step_time=StepTimeModel(0.0005, 2e-14, 512))
    planner = planner._replace(other=OtherText(("package-docs",), 400_000, 50_000, 2048, 4_000_000))
    config = for_time("24h")
    auto = tuple(name for name in config.train.auto if name != "grad_accum_steps")
    config = replace(config, train=replace(config.train, grad_accum_steps=48, auto=auto))
    train = planner.plan(replace(config, data=DataConfig(first=planner.other.sources)))[0].train
    assert train.first_share and train.batch_size % 48 == 0
