"""Other text that a run learns from first: what is left out of it, and the tokenizer for both texts."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.run.support import CPU, FRENCH, finish, first, interrupt, of, out_dir, same_weights, with_data, with_train
from tiny_gpt.config import FINAL_FILE
from tiny_gpt.data.copied_spans import decoded_text
from tiny_gpt.data.overlap import HeldOut, overlap_of_tokens
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import Notice
from tiny_gpt.data.progress import finish as prepared
from tiny_gpt.data.sources import download
from tiny_gpt.errors import BadInputError
from tiny_gpt.model_io.model_file import load_model
from tiny_gpt.run import other_text
from tiny_gpt.run.events import Prepared, StageBegun
from tiny_gpt.run.other_text import prepare_other, prepare_texts, tokenizer_for
from tiny_gpt.run.run import run
from tiny_gpt.tokenizer.bpe import BpeTokenizer

pytestmark = pytest.mark.usefixtures("save_at_every_step")


@pytest.fixture
def long_lines(french_first, tmp_path):
    """The run's own text has lines that are long enough to be compared."""
    own = tmp_path / "own.txt"
    own.write_text("".join(f"This is line {i}, and it is long enough to be compared.\n" for i in range(400)))
    return with_train(with_data(french_first, data=(str(own),)), steps=8)


def test_a_first_text_with_the_validation_text_in_it_is_told(long_lines, monkeypatch):
    monkeypatch.setattr(HeldOut, "removed_from", lambda self, document: document)
    leaking = with_data(long_lines, first=long_lines.data.data)
    french, own = ([event.text for event in of(Notice, run(config))] for config in (long_lines, leaking))
    assert not any("--first" in text for text in french)
    assert any("of the validation text also occurs in the text of --first" in text for text in own)


def test_validation_text_is_left_out_of_other_text(long_lines, tmp_path):
    """Of a folder with the run's own text, whose end is held out, and a file of that end alone."""
    own, folder = tmp_path / "own.txt", tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text(FRENCH)
    (folder / "b.txt").write_text("\n".join(own.read_text().splitlines()[-30:]))
    (folder / "c.txt").write_text(own.read_text())
    config = with_data(long_lines, first=(str(folder),))
    dataset = prepared(prepare(config.data, 8))
    other = prepared(prepare_other(config, dataset))
    assert overlap_of_tokens(dataset.tokenizer, other.train, dataset.val) == 0
    assert any("1: holds only the validation text" in note for note in other.notes)
    assert any("1: documents that repeat the validation text" in note for note in other.notes)
    n_left = len(decoded_text(dataset.tokenizer, other.train)) - len(FRENCH)
    assert 0.8 * len(own.read_text()) < n_left < 0.95 * len(own.read_text())
    with pytest.raises(BadInputError) as error:
        prepared(prepare_other(with_data(config, first=(str(folder / "b.txt"),)), dataset))
    assert error.value.code == "first-is-held-out"


def test_a_plan_is_not_offered_related_text_that_holds_the_validation_text(long_lines, monkeypatch, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(long_lines.data.data[0]).read_bytes())
    monkeypatch.setattr(other_text, "related_texts", lambda sample, is_long: [(str(copy),)])
    monkeypatch.setattr(HeldOut, "removed_from", lambda self, document: document)
    config = with_data(with_train(long_lines, steps=0, for_="1h", auto=("teachers",)), first=())
    assert prepared(prepare_texts(config, prepared(prepare(config.data, 8)))).shared is None


def test_a_plan_takes_the_first_related_text_that_can_be_had(long_lines, monkeypatch, tmp_path):
    own, french = long_lines.data.data, long_lines.data.first
    monkeypatch.setattr(other_text, "related_texts", lambda sample, is_long: [("wikitext-2", *french), own, french])
    monkeypatch.setattr(download, "RETRY_PAUSES_S", (0.0,))
    config = with_data(with_train(long_lines, steps=0, for_="1h", auto=("teachers",)), first=())
    events = prepare_texts(config, prepared(prepare(config.data, 8)))
    notices = []
    while True:
        try:
            notices += of(Notice, [next(events)])
        except StopIteration as stop:
            assert stop.value.first == french
            break
    assert any(event.text.startswith("the run cannot begin with wikitext-2 and") for event in notices)


@pytest.fixture
def shared_tokenizer(long_lines, tmp_path):
    """Own and other text with a tokenizer that is trained on both."""
    config = with_data(long_lines, tokenizer="bpe", first=(str(tmp_path / "french.txt"),))
    return with_train(config, steps=34)


def test_a_run_with_a_tokenizer_for_both_texts_resumes_without_its_stored_tokens(shared_tokenizer, tmp_path):
    expected = finish(with_train(shared_tokenizer, out_dir=str(tmp_path / "twin")))
    interrupt(shared_tokenizer, after=20)
    shutil.rmtree(tmp_path / "cache" / "tokens")
    outcome = finish(shared_tokenizer, resume=True)
    assert same_weights(outcome.weights, expected.weights) and outcome.rows == expected.rows
    tokenizer = load_model(out_dir(shared_tokenizer) / FINAL_FILE, CPU).tokenizer
    own, french = shared_tokenizer.data, with_data(shared_tokenizer, data=shared_tokenizer.data.first).data
    alone = [prepared(prepare(replace(data, first=()), 8)).tokenizer for data in (own, french)]
    text = FRENCH[:2000]
    assert len(tokenizer.encode(text)) < 0.8 * len(alone[0].encode(text))


def test_counted_passes_over_the_own_text(long_lines):
    """34 steps of other text, then two passes."""
    n_tokens = first(Prepared, run(long_lines)).train_tokens
    two_passes = 2 * n_tokens / long_lines.train.batch_size / long_lines.model.block_size
    config = with_train(long_lines, steps=round(two_passes) + 34, own_data_epochs=2.0)
    pretraining, own = of(StageBegun, run(config))
    assert (pretraining.step, pretraining.name) == (0, "pretraining")
    assert own.step == pytest.approx(34, abs=2)


def test_what_other_text_needs_is_told_where_there_is_none(config):
    config = with_train(config, own_data_epochs=2.0, pretrainings=2, steps=3)
    notices = [event.text for event in of(Notice, run(config))]
    assert any("--own-data-epochs and --pretrainings: without effect" in text for text in notices)


def test_a_tokenizer_for_both_texts_is_trained_once(shared_tokenizer, tmp_path, monkeypatch):
    def train() -> dict[str, Any]:
        return prepared(tokenizer_for(shared_tokenizer)).to_dict()

    trained = train()
    with monkeypatch.context() as patch:
        patch.setattr(BpeTokenizer, "train", lambda *_: pytest.fail("trained again"))
        assert train() == trained
    (kept,) = (tmp_path / "cache" / "tokens").glob("tokenizer-*.json")
    kept.write_bytes(kept.read_bytes()[:100])
    assert train() == trained
    own = Path(shared_tokenizer.data.data[0])
    own.write_text(own.read_text().replace("e", "ou"))
    assert train() != trained
