"""A file of every format with the same two words in it: what the contract tests of the readers use."""

import io
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet

WORDS = ["one", "two é"]


def epub_bytes(chapters: list[str], others: dict[str, str | bytes] | None = None) -> bytes:
    """A book whose archive has the chapters in reverse order. `others`: further files, or other content of its own."""
    items = "".join(f'<item id="i{i}" href="c{i}.xhtml"/>' for i in range(len(chapters)))
    spine = "".join(f'<itemref idref="i{i}"/>' for i in range(len(chapters)))
    files = {
        "META-INF/container.xml": '<c><rootfiles><rootfile full-path="O/c.opf"/></rootfiles></c>',
        "O/c.opf": f"<package><manifest>{items}</manifest><spine>{spine}</spine></package>",
    }
    for i, chapter in reversed(list(enumerate(chapters))):
        files[f"O/c{i}.xhtml"] = f"<html><body><p>{chapter}</p></body></html>"
    return zip_bytes(files | (others or {}))


def zip_bytes(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def parquet_bytes(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), buffer)
    return buffer.getvalue()


def tar_bytes(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    return buffer.getvalue()


JSON_LINES = '{"text": "one"}\n{"text": "two é"}\n'.encode()
HTML = "<p>one</p><p>two é</p>".encode()
SAMPLE_OF_SUFFIX = {
    ".txt": "one\n\ntwo é".encode(),
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": b'[\n {"text": "one"},\n {"text": "two \\u00e9"}\n]\n',
    ".csv": "text,n\none,1\ntwo é,2\n".encode(),
    ".tsv": "text\tn\none\t1\ntwo é\t2\n".encode(),
    ".tab": "text\tn\none\t1\ntwo é\t2\n".encode(),
    ".parquet": parquet_bytes(WORDS),
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".epub": epub_bytes(WORDS),
    ".zip": zip_bytes({"1.txt": "one", "2.txt": "two é"}),
    ".tar": tar_bytes({"1.txt": "one", "2.txt": "two é"}),
}
