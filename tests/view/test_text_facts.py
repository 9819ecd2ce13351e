"""What simple methods make of a text, and what samples copy from it."""

import math
import random

import pytest

from tests.view.support import plant
from tiny_gpt.config import DataConfig
from tiny_gpt.data.copied_spans import CopyIndex, decoded_text
from tiny_gpt.data.prepare import prepare
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.view.copied import CopySearch
from tiny_gpt.view.report import write_report
from tiny_gpt.view.run_files import Sample
from tiny_gpt.view.run_folder import RunFolder
from tiny_gpt.view.text_facts import compute_text_facts, open_training_text

LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Text in which each letter is followed by one of two: 1 bit per letter, if you know the one before."""
    rng, letter, letters = random.Random(0), 0, []
    for _ in range(60_000):
        letters.append(LETTERS[letter])
        letter = (2 * letter + rng.randrange(2)) % 8
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(letters))
    preparation = prepare(DataConfig((str(path),), tokenizer="char"), block_size=16)
    while True:
        try:
            next(preparation)
        except StopIteration as done:
            return done.value


def test_baselines_of_a_known_source(dataset):
    index = CopyIndex(decoded_text(dataset.tokenizer, dataset.train))
    facts = compute_text_facts(dataset, index)
    assert facts.letters == pytest.approx(math.log2(len(LETTERS)), abs=0.01)
    assert facts.pairs == pytest.approx(1, abs=0.01)
    assert 1 < facts.xz < 2 and 1 < facts.gzip < 3
    assert (facts.train_bytes, facts.indexed_bytes) == (54_000, 54_000)
    assert 0 <= facts.held_out_copied < 0.05


def test_copied_passages_of_samples(dataset):
    text = decoded_text(dataset.tokenizer, dataset.train)
    long, short = text[2000:2120].decode(), text[500:560].decode()
    found = CopySearch(CopyIndex(text)).of([Sample(1, "It said: " + short), Sample(2, f"Zz{long}zZ Q{short}")])
    assert [passage.text for passage in found.passages] == [long, short]
    assert found.passages[0].line == 1 and found.passages[0].before == text[1940:2000].decode()
    assert found.spans[2] == ((2, 122), (126, 186)) and found.spans[1] == ((9, 69),)
    assert found.sample_rate == pytest.approx(240 / (69 + 186), abs=0.01)


def test_report_uses_the_text_of_the_runs_checkpoint(dataset, tmp_path):
    sample = decoded_text(dataset.tokenizer, dataset.train)[100:200].decode()
    folder = plant(tmp_path / "night", samples={100: sample})
    about = {"data": dataset.identity, "machine": {"torch": "2.13"}}
    CheckpointStore(folder).write(7, {"x.bin": lambda sink: sink.write(b"1")}, about)
    page = write_report(folder).read_text()
    assert f"<mark>{sample}</mark>" in page and "it recites your text" in page and "pairs of letters" in page
    facts = RunFolder(folder).view().facts
    assert facts is not None and facts.text_sha256 == dataset.identity["text_sha256"]
    other = about | {"data": dataset.identity | {"text_sha256": "0"}}
    CheckpointStore(folder).write(8, {"x.bin": lambda sink: sink.write(b"1")}, other)
    assert RunFolder(folder).view().facts is None, "these facts are of another text"
    assert open_training_text(None) is None
