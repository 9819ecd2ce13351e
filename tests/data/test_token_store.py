"""Token ids on disk: found again without encoding, rebuilt when damaged, complete or absent."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.data.support import write_documents
from tiny_gpt.data import token_store
from tiny_gpt.data.progress import finish
from tiny_gpt.data.text_file import SEPARATOR
from tiny_gpt.data.token_store import build_store, open_store, store_folder, temporary_build_folder
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.tokenizer.base import decode
from tiny_gpt.tokenizer.byte_char import ByteTokenizer, CharTokenizer

TRAIN, VAL = ["Some text. é", "More of it: 中."], ["Held out ñ."]


class CountingTokenizer(ByteTokenizer):
    """Counts the texts that it encodes."""

    def __init__(self):
        self.n_encoded = 0

    def encode_utf8(self, utf8):
        self.n_encoded += 1
        return super().encode_utf8(utf8)


def open_or_build(folder, train, val, tokenizer):
    """What `prepare` does with a store."""
    if open_store(folder) is None:
        with temporary_build_folder(folder) as build_folder:
            texts = {"text": train, "val-text": val}
            splits = [write_documents(build_folder / name, documents).whole() for name, documents in texts.items()]
            finish(build_store(build_folder, folder, *splits, tokenizer, {"n": 1}))
    store = open_store(folder)
    assert store.about == {"n": 1} and store.tokenizer.to_dict() == tokenizer.to_dict()
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "train.bin", "val.bin"]
    return store.train, store.val


def assert_holds(tokens, texts, tokenizer=None):
    text = SEPARATOR.decode().join(texts)
    assert decode(tokenizer or ByteTokenizer(), tokens.ids.tolist()) == text
    assert tokens.n_bytes == len(text.encode())


def assert_nothing_left(folder):
    assert not folder.parent.exists() or list(folder.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("n_characters", "dtype"), [(0, "uint8"), (1, "uint16"), (65_536 - 256, "uint16"), (65_537 - 256, "uint32")]
)
def test_ids_have_the_smallest_type_that_fits(tmp_path, n_characters, dtype):
    tokenizer = CharTokenizer("".join(map(chr, range(0x10000, 0x10000 + n_characters))))
    last = tokenizer.characters[-1:] or "z"
    train, val = open_or_build(tmp_path / "store", [last, "a"], [last], tokenizer)
    assert train.ids.dtype == val.ids.dtype == np.dtype(dtype)
    assert_holds(train, [last, "a"], tokenizer)
    assert not train.ids.flags.owndata and not train.ids.flags.writeable, "mapped, not read"


def test_second_opening_encodes_nothing(tmp_path):
    tokenizer = CountingTokenizer()
    for _ in range(2):
        train, val = open_or_build(tmp_path / "store", TRAIN, VAL, tokenizer)
        assert tokenizer.n_encoded == 2
        assert_holds(train, TRAIN)
        assert_holds(val, VAL)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_empty_split_is_stored(tmp_path):
    for _ in range(2):
        train, val = open_or_build(tmp_path / "store", ["abc"], [], ByteTokenizer())
        assert len(train) == 3 and len(val) == val.n_bytes == 0


def test_another_key_has_another_folder(tmp_path):
    keys = [("a", "b"), ("ab", ""), ("a", "c"), ("a", "b", 0), ("a", "b", "0")]
    assert len({store_folder(tmp_path, *key) for key in keys}) == len(keys)
    assert store_folder(tmp_path, "a", "b") == store_folder(tmp_path, "a", "b")


def flip(path, position):
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    "a flipped bit in the ids": lambda folder: flip(folder / "train.bin", 3),
    "ids cut short": lambda folder: os.truncate(folder / "val.bin", 4),
    "no ids": lambda folder: (folder / "val.bin").unlink(),
    "ids that grew": lambda folder: (folder / "val.bin").write_bytes((folder / "val.bin").read_bytes() + b"x"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut short": lambda folder: os.truncate(folder / "manifest.json", 40),
    "empty manifest": lambda folder: os.truncate(folder / "manifest.json", 0),
    "foreign list": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "foreign object": lambda folder: (folder / "manifest.json").write_text('{"train": 1}'),
    "manifest of zero bytes": lambda folder: (folder / "manifest.json").write_bytes(bytes(500)),
    "a folder in the manifest's place": lambda folder: (
        (folder / "manifest.json").unlink(),
        (folder / "manifest.json").mkdir(),
    ),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_store_is_rebuilt(tmp_path, damage):
    folder, tokenizer = tmp_path / "store", CountingTokenizer()
    open_or_build(folder, TRAIN, VAL, tokenizer)
    damage(folder)
    for _ in range(2):
        train, val = open_or_build(folder, TRAIN, VAL, tokenizer)
        assert_holds(train, TRAIN)
        assert_holds(val, VAL)
    assert tokenizer.n_encoded == 4
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_every_flipped_bit_of_the_manifest_is_noticed(tmp_path):
    folder, tokenizer = tmp_path / "store", CountingTokenizer()
    open_or_build(folder, TRAIN, VAL, tokenizer)
    whole = (folder / "manifest.json").read_bytes()
    content = json.loads(whole)
    for position in range(len(whole)):
        flip(folder / "manifest.json", position)
        found = open_store(folder)
        # A flip between the values, such as of a space, may leave the content as it was.
        if found is not None:
            assert json.loads((folder / "manifest.json").read_bytes()) == content
        (folder / "manifest.json").write_bytes(whole)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, RuntimeError("a bug")])
def test_interrupted_build_leaves_nothing(tmp_path, failure):
    class Failing(ByteTokenizer):
        def encode_utf8(self, utf8):
            if utf8 == VAL[0].encode():
                raise failure
            return super().encode_utf8(utf8)

    folder = tmp_path / "tokens" / "store"
    with pytest.raises(failure if isinstance(failure, type) else type(failure)):
        open_or_build(folder, TRAIN, VAL, Failing())
    assert_nothing_left(folder)
    assert_holds(open_or_build(folder, TRAIN, VAL, ByteTokenizer())[0], TRAIN)


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_build_that_fails_at_the_end_leaves_nothing(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    folder = tmp_path / "tokens" / "store"
    with monkeypatch.context() as patch, pytest.raises(OutOfResourcesError, match="TINY_GPT_CACHE"):
        if call == "rename":
            patch.setattr(token_store.os, "rename", fail)
        else:
            patch.setattr(token_store, "sync_to_disk", fail)
        open_or_build(folder, TRAIN, VAL, ByteTokenizer())
    assert_nothing_left(folder)


@pytest.mark.parametrize("n_bytes", [0, 20, 40])
def test_full_disk_names_the_cache_variable(tmp_path, fill_disk, n_bytes):
    fill_disk(token_store, n_bytes)
    folder = tmp_path / "tokens" / "store"
    with pytest.raises(OutOfResourcesError, match="TINY_GPT_CACHE"):
        open_or_build(folder, ["0123456789" * 3, "0123456789" * 3], VAL, ByteTokenizer())
    assert_nothing_left(folder)


def test_unusable_cache_names_the_cache_variable(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutOfResourcesError, match="TINY_GPT_CACHE"):
        open_or_build(tmp_path / "file" / "store", TRAIN, VAL, ByteTokenizer())


BUILD_TOGETHER = """
import sys, time
from pathlib import Path
from tests.data.test_token_store import open_or_build
from tiny_gpt.tokenizer.byte_char import ByteTokenizer
base, own, other = map(Path, sys.argv[1:])
for i in range(40):
    (own / str(i)).touch()
    while not (other / str(i)).exists():
        time.sleep(0)
    train, val = open_or_build(base / str(i), ["some text"] * 20, ["held out"], ByteTokenizer())
    assert bytes(val.ids) == b"held out" and train.n_bytes == 20 * 11 - 2
"""


def test_two_processes_can_build_the_same_store(tmp_path):
    sides = [tmp_path / "left", tmp_path / "right"]
    for side in sides:
        side.mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", BUILD_TOGETHER, tmp_path / "stores", *order], stderr=subprocess.PIPE)
        for order in (sides, sides[::-1])
    ]
    try:
        errors = [process.communicate(timeout=30)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert errors == [b"", b""]
    assert sorted(path.name for path in (tmp_path / "stores").iterdir()) == sorted(map(str, range(40)))
