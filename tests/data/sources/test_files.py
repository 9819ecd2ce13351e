"""Files in folders, and the hash of a list of files."""

import os

from tests.data.support import write_file
from tiny_gpt.data.progress import finish
from tiny_gpt.data.sources.files import content_hash
from tiny_gpt.data.sources.resolve import resolve


def test_folder_is_read_in_order_and_the_rest_counted(tmp_path, read):
    for name, raw in {
        "b.txt": b"second",
        "a/z.md": b"first",
        "c/deep/er/x": b"third",
        ".hidden": b"secret",
        "c/.cache/x.txt": b"secret",
        "image.png": b"\x89PNG\0",
        "latin.txt": b"\xe9",
        "nothing.txt": b"\n",
    }.items():
        write_file(tmp_path / name, raw)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    (tmp_path / "d_second_name.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "again.txt").symlink_to(tmp_path / "again.txt")
    documents, corpus = read(str(tmp_path))
    assert documents == ["first", "second", "third"]
    assert corpus.skipped == {
        "hidden": 2,
        "broken link": 2,
        "another name of a file or folder already read": 2,
        "is a picture": 1,
        "is not UTF-8 text": 1,
        "is empty": 1,
    }


def hash_of(*specs):
    return finish(content_hash(finish(resolve(specs)).files))


def test_hash_depends_on_content_names_and_order(tmp_path):
    one, two = write_file(tmp_path / "1.txt", b"text"), write_file(tmp_path / "2.txt", b"text")
    moved = write_file(tmp_path / "moved" / "1.txt", b"text")
    assert hash_of(one) == hash_of(moved)
    hashes = [hash_of(one), hash_of(two), hash_of(one, two), hash_of(two, one), hash_of(str(tmp_path / "1.*"))]
    write_file(tmp_path / "1.txt", b"Text")
    assert len({*hashes, hash_of(one)}) == 6


def test_hash_is_stable(tmp_path):
    """Token stores are found by it: another value would encode every text again."""
    path = write_file(tmp_path / "a.txt", b"some text")
    assert hash_of(path) == "a93d603a4d636663ad0aa884427ccbab4c006a70f88fbc41b86c13f55bf0c160"


def test_folders_of_runs_models_and_software_are_left_out_and_told(tmp_path, read):
    for name in (
        "notes/a.txt",
        "runs/diary/config.json",
        "runs/diary/train.log",
        "runs/diary/checkpoints/1/state.json",
        "runs/done/tiny_gpt_best.pt",
        "runs/done/metrics.jsonl",
        "exported/config.json",
        "exported/model.safetensors",
        "env/pyvenv.cfg",
        "env/lib/a.txt",
        "web/node_modules/x/README.md",
        "bare.git/HEAD",
        "bare.git/objects/a",
        "bare.git/refs/b",
        "cached/CACHEDIR.TAG",
    ):
        write_file(tmp_path / name, b"some text")
    sources = finish(resolve([str(tmp_path)]))
    assert [file.path.name for file in sources.files] == ["a.txt"]
    assert sources.skipped == {
        "folder of a run": 2,
        "folder of a model": 1,
        "folder of installed software": 2,
        "folder of a version control system": 1,
        "folder of a cache": 1,
    }
    assert sources.examples["folder of a run"] == os.path.join("runs", "diary")


def test_run_beside_the_text_is_left_out_and_the_text_read(tmp_path):
    """train.py leaves its run in the folder where it starts."""
    for name in ("book.txt", "train.log", "metrics.jsonl", "config.json", "tiny_gpt_best.pt", "samples/1.txt"):
        write_file(tmp_path / name, b"some text")
    sources = finish(resolve([str(tmp_path)]))
    assert [file.path.name for file in sources.files] == ["book.txt"] and sources.skipped == {"file of a run": 5}


def test_folder_that_only_looks_like_a_run_is_read(tmp_path):
    for name in ("logs/train.log", "site/config.json", "site/page.txt", "samples/a.txt", "checkpoints/b.txt"):
        write_file(tmp_path / name, b"some text")
    assert len(finish(resolve([str(tmp_path)])).files) == 5
