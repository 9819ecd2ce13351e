"""Texts and files for the tests of the data room."""

from pathlib import Path

from tiny_gpt.data.text_file import TextFile, TextSplit, TextWriter

# Text in many scripts: one to four bytes per character, right to left, combining characters, emoji sequences.
SAMPLES = {
    "English": "The cat sat on the mat.\n",
    "Russian": "Кошка сидела на коврике.\n",
    "Chinese": "猫坐在垫子上。\n",
    "Arabic": "جلست القطة على السجادة.\n",
    "Hindi": "बिल्ली चटाई पर बैठी थी।\n",
    "Greek": "Η γάτα κάθισε στο χαλί.\n",
    "Japanese": "猫はマットの上に座った。\n",
    "Thai": "แมวนั่งบนเสื่อ\n",
    "marks": "e\u0301 👩‍👩‍👧 🏳️‍🌈 n\u0303\n",
}


def write_file(path: Path, content: bytes) -> str:
    """Write a file, and its folder if necessary. Returns its path as a source spec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def write_documents(path: Path, documents: list[str]) -> TextFile:
    """A text file of `documents`, each written in pieces."""
    writer = TextWriter(path)
    for document in documents:
        writer.begin_document()
        size = max(7, len(document) // 1000)
        for start in range(0, len(document), size):
            writer.write(document[start : start + size])
        writer.end_document()
    return writer.close()


def text_of(split: TextSplit) -> str:
    return b"".join(chunk.read() for chunk in split.chunks()).decode()
