"""DATASETS: the built-in datasets by name, with their URLs, sizes, hashes and licenses.

To add one, add a row. fetch.py downloads it on first use.
"""

from dataclasses import dataclass

from tiny_gpt.data.sources import python_docs


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset."""

    name: str
    urls: tuple[str, ...]
    """Tried in this order."""
    n_bytes: int | None
    sha256: str | None
    """None if no public source states it; then the hash of the first download is recorded and compared with."""
    train: str | None = "*"
    """Pattern for the training texts in an archive; None if this file has none."""
    val: str | None = None
    """Pattern for the validation texts in an archive."""


@dataclass(frozen=True)
class DatasetInfo:
    """A built-in dataset. One without files is generated on this machine."""

    description: str
    license: str
    text_size: str
    files: tuple[RemoteFile, ...]


DATASETS: dict[str, DatasetInfo] = {
    python_docs.NAME: DatasetInfo(
        "the manual and the docstrings of your own Python; needs no network", "PSF", "2 MB", ()
    ),
    python_docs.PACKAGE_DOCS: DatasetInfo(
        "python-docs and the docstrings of torch, sympy, networkx, numpy and others; needs no network",
        "PSF, BSD and others",
        "17 MB",
        (),
    ),
    python_docs.PACKAGE_SOURCE: DatasetInfo(
        "the Python source code of your own Python and of the same packages; needs no network",
        "PSF, BSD and others",
        "80 MB",
        (),
    ),
    "tinyshakespeare": DatasetInfo(
        "plays of Shakespeare, the smallest common benchmark",
        "public domain",
        "1.1 MB",
        (
            RemoteFile(
                "tinyshakespeare.txt",
                ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
                1_115_394,
                # stated in many pinned data sets, such as Hugging Face's tiny_shakespeare
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    ),
    # sizes and hashes: the download_checksums in Hugging Face's first data card of wikitext; s3.amazonaws.com, the
    # first address, is gone
    "wikitext-2": DatasetInfo(
        "good articles of Wikipedia, a small selection, with its own validation text",
        "CC BY-SA 3.0",
        "11 MB",
        (
            RemoteFile(
                "wikitext-2-raw-v1.zip",
                (
                    "https://wikitext.smerity.com/wikitext-2-raw-v1.zip",
                    "https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip",
                ),
                4_721_645,
                "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
                train="*/wiki.train.raw",
                val="*/wiki.valid.raw",
            ),
        ),
    ),
    "wikitext-103": DatasetInfo(
        "good articles of Wikipedia, with its own validation text: the guide's text",
        "CC BY-SA 3.0",
        "540 MB",
        (
            RemoteFile(
                "wikitext-103-raw-v1.zip",
                (
                    "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
                    "https://huggingface.co/datasets/mattdangerw/wikitext-103-raw/resolve/main/wikitext-103-raw-v1.zip",
                ),
                191_984_949,
                "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
                train="*/wiki.train.raw",
                val="*/wiki.valid.raw",
            ),
        ),
    ),
    "tinystories": DatasetInfo(
        "short stories for small children, written by GPT-4 (Eldan and Li, 2023)",
        "CDLA-Sharing-1.0",
        "2.2 GB",
        (
            RemoteFile(
                "TinyStoriesV2-GPT4-train.txt",
                ("https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt",),
                None,
                None,
            ),
            RemoteFile(
                "TinyStoriesV2-GPT4-valid.txt",
                ("https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-valid.txt",),
                None,
                None,
                train=None,
                val="*",
            ),
        ),
    ),
    # sizes and hashes of both: mattmahoney.net/dc/textdata.html and the many programs that pin them
    "enwik8": DatasetInfo(
        "the first 100 MB of Wikipedia's XML, the benchmark of compressors",
        "CC BY-SA 3.0",
        "100 MB",
        (
            RemoteFile(
                "enwik8.zip",
                ("https://mattmahoney.net/dc/enwik8.zip",),
                36_445_475,
                "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            ),
        ),
    ),
    "text8": DatasetInfo(
        "the same cleaned to 26 letters and spaces",
        "CC BY-SA 3.0",
        "100 MB",
        (
            RemoteFile(
                "text8.zip",
                ("https://mattmahoney.net/dc/text8.zip",),
                None,
                "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            ),
        ),
    ),
}
