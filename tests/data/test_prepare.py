"""From sources to tokens in one call, and to the same tokens the next time."""

import pytest

from tests.data.support import SAMPLES, write_file
from tiny_gpt.config import DataConfig
from tiny_gpt.data import corpus
from tiny_gpt.data.prepare import open_stored_dataset, open_stored_tokenizer, prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.errors import BadInputError
from tiny_gpt.tokenizer.base import TOKENIZERS, decode


@pytest.mark.parametrize("script", SAMPLES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_tokens_decode_to_the_text(tmp_path, script, tokenizer):
    text = SAMPLES[script] * 50
    dataset = finish(prepare(DataConfig((write_file(tmp_path / "a.txt", text.encode()),), tokenizer=tokenizer), 4))
    ids = [*dataset.train.ids.tolist(), *dataset.val.ids.tolist()]
    assert decode(dataset.tokenizer, ids) == text
    assert dataset.train.n_bytes + dataset.val.n_bytes == len(text.encode())


def test_own_validation_text_is_used_and_overlap_reported(tmp_path):
    lines = [f"This is line number {i} of a text that is long enough to be a passage.\n" for i in range(200)]
    train = write_file(tmp_path / "train.txt", "".join(lines[:150]).encode())
    val = write_file(tmp_path / "val.txt", "".join(lines[100:]).encode())
    dataset = finish(prepare(DataConfig((train,), val=(val,)), 8))
    assert decode(dataset.tokenizer, dataset.val.ids.tolist()) == "".join(lines[100:])
    assert decode(dataset.tokenizer, dataset.train.ids.tolist()) == "".join(lines[:150])
    assert [note for note in dataset.notes if "50% of the validation text" in note]


def test_text_is_read_again_only_for_other_settings_or_text(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a.txt", b"some words of text\n" * 100)
    other = write_file(tmp_path / "b.txt", b"some words of text\n" * 101)
    reads = []
    read_corpus = corpus.read_corpus
    monkeypatch.setattr(corpus, "read_corpus", lambda *args: reads.append(args[0]) or read_corpus(*args))
    first = finish(prepare(DataConfig((path,), tokenizer="bpe"), 4))
    for config, n_reads in [
        (DataConfig((path,), tokenizer="bpe"), 1),
        (DataConfig((path,), tokenizer="bpe", vocab_size=300), 2),
        (DataConfig((path,), tokenizer="char"), 3),
        (DataConfig((path,), tokenizer="char", val_fraction=0.2), 4),
        (DataConfig((other,), tokenizer="bpe"), 5),
        (DataConfig((path, other), tokenizer="bpe"), 6),
    ]:
        finish(prepare(config, 4))
        assert len(reads) == n_reads
    again = finish(prepare(DataConfig((path,), tokenizer="bpe"), 4))
    assert again.train.ids.tolist() == first.train.ids.tolist() and len(reads) == 6


def test_stored_tokens_are_opened_without_their_source(tmp_path):
    path = tmp_path / "a.txt"
    config = DataConfig((write_file(path, b"some words of text\n" * 100),))
    dataset = finish(prepare(config, 4))
    path.unlink()
    store = dataset.identity["store"]
    stored = open_stored_dataset(config, store)
    assert stored.identity == dataset.identity and stored.train.ids.tolist() == dataset.train.ids.tolist()
    assert open_stored_tokenizer(store).to_dict() == dataset.tokenizer.to_dict()
    for name in ("0" * 32, f"../tokens/{store}", ""):
        assert open_stored_dataset(config, name) is None and open_stored_tokenizer(name) is None


def test_store_names_are_stable(tmp_path):
    """A store is found by its name: another name would encode every text again."""
    source = write_file(tmp_path / "a.txt", b"some words of text\n" * 100)
    dataset = finish(prepare(DataConfig((source,), tokenizer="byte"), 4))
    assert dataset.identity == {
        "train_tokens": 1710,
        "val_tokens": 190,
        "vocab_size": 256,
        "tokenizer_sha256": "46b1f52b27edb5572d7e847aac74b8a7ae63ed5ed354a00d25d44a24a7e646d7",
        "text_sha256": "23126a44ac9862d88188985369e508ad7dd6e075cd00b7d9696f355414e4b874",
        "store": "129debd92a4c704e4b24c5b8ee227c8d",
    }


@pytest.mark.parametrize(("n_characters", "block_size"), [(9, None), (100, 9), (1280, 127)])
def test_short_text_is_refused_with_a_block_size_that_works(tmp_path, n_characters, block_size):
    source = write_file(tmp_path / "short.txt", b"x" * n_characters)
    with pytest.raises(BadInputError) as error:
        finish(prepare(DataConfig((source,)), 128))
    assert error.value.code == "text-too-short"
    if block_size is None:
        assert "--block-size" not in str(error.value)
    else:
        assert str(error.value).endswith(f"--block-size {block_size}")
        finish(prepare(DataConfig((source,)), block_size))
