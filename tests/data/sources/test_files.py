"""Files in folders, and the hash of a list of files."""

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
