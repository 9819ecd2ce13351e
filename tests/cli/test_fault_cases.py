"""Odd arguments, paths, models, runs and environments: each ends with a message for a person, and with its exit code.

A case is a command line in a folder that has one of everything that may be wrong (`faulty`). None may end as an
unexpected error, print a traceback, or leave a file that it says it did not write.
"""

import gzip
import io
import os
import re
import shlex
import sys

import numpy as np
import pytest
import torch

from tiny_gpt.cli import launch, process
from tiny_gpt.cli.main import main


def archive(path, content):
    torch.save(content, path)


@pytest.fixture(scope="module")
def faulty(trained, text, tmp_path_factory):
    """A folder with a finished run `runs/good`, its model as good.pt, and damaged copies of everything."""
    folder = tmp_path_factory.mktemp("faulty")
    content = (trained[0] / "tiny_gpt_best.pt").read_bytes()
    run = folder / "runs" / "good"
    run.mkdir(parents=True)
    for path in trained[0].rglob("*"):
        if path.is_file() and ".lock" not in path.parts:
            target = run / path.relative_to(trained[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (folder / "good.pt").write_bytes(content)
    (folder / "text.txt").write_bytes(text.read_bytes())
    make_models(folder, content)
    make_texts(folder)
    make_runs(folder)
    return folder


def make_models(folder, content):
    (folder / "empty.pt").touch()
    (folder / "cut.pt").write_bytes(content[: len(content) // 2])
    (folder / "cut1.pt").write_bytes(content[:-1])
    (folder / "longer.pt").write_bytes(content + b"x")
    (folder / "flipped.pt").write_bytes(content[:2000] + bytes([content[2000] ^ 255]) + content[2001:])
    (folder / "zeros.pt").write_bytes(bytes(5000))
    (folder / "text.pt").write_text("no model")
    (folder / "page.pt").write_text("<html><body>404</body></html>")
    (folder / "zip.pt").write_bytes(b"PK\x05\x06" + bytes(18))
    archive(folder / "list.pt", [1, 2])
    archive(folder / "foreign.pt", {"weights": torch.zeros(2)})
    archive(folder / "version.pt", {"format": "tiny_gpt model", "format_version": 99})
    archive(folder / "parts.pt", {"format": "tiny_gpt model", "format_version": 1, "weights": {}})
    archive(folder / "half.pt", {"format": "tiny_gpt model", "w": torch.zeros(2, dtype=torch.float16)})
    archive(folder / "object.pt", {"format": np.float64(1)})
    (folder / "link.pt").symlink_to("good.pt")
    (folder / "loop.pt").symlink_to("loop.pt")
    (folder / "dangling.pt").symlink_to("nothing.pt")
    (folder / "folder.pt").mkdir()
    os.mkfifo(folder / "pipe.pt")
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text("{")
    (folder / "hf2").mkdir()
    (folder / "hf2" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "hf2" / "model.safetensors").write_bytes(b"x" * 7)
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text("{}")
    (folder / "bad.gguf").write_bytes(b"GGUF" + bytes(20))


def make_texts(folder):
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text(" \n\t\n" * 999)
    (folder / "nul.txt").write_bytes(bytes(9999))
    (folder / "one.txt").write_text("a")
    (folder / "-dash.txt").write_text("a text whose name begins with a dash. " * 99)
    (folder / "a b 'c\".txt").write_text("a text with an odd name. " * 99)
    (folder / "my book.txt").write_text("a text with a blank in its name. " * 99)
    (folder / "line\nend.txt").write_text("a text with an odd name. " * 99)
    (folder / "txt.d").mkdir()
    (folder / "loop").mkdir()
    (folder / "loop" / "again").symlink_to("..")
    (folder / "loop" / "a.txt").write_text("a text in a folder that contains itself. " * 99)
    (folder / "pic.txt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)
    (folder / "cut.gz").write_bytes(b"\x1f\x8b\x08\x00\x00")
    (folder / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    (folder / "bad.parquet").write_bytes(b"PAR1xxxxPAR1")
    (folder / "bad.epub").write_bytes(b"PK\x03\x04 no book")
    (folder / "bad.jsonl").write_text("{]\n")
    (folder / "noform.csv").write_text("a,b\n1,2\n")
    os.mkfifo(folder / "pipe.txt")
    make_odd_texts(folder)


def make_odd_texts(folder):
    sentences = "The lobster said that every one of them had been told to write it down.\n" * 60
    packed = gzip.compress(sentences.encode())
    nested = "<div>" * 9000 + "words within" + "</div>" * 9000
    for name, content in {
        "crlf.txt": sentences.replace("\n", "\r\n").encode(),
        "cr.txt": sentences.replace("\n", "\r").encode(),
        "utf32.txt": sentences.encode("utf-32"),
        "surrogates.txt": b"lobsters \xed\xa0\x80 and others\n" * 200,
        "japanese.txt": ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 90).encode("cp932"),
        "escapes.txt": b"\x1b[31mred\x1b[0m \x07 bell \x1b]0;title\x07 " * 200,
        "longer.gz": packed + b"garbage",
        "twice.gz": packed * 2,
        "a.pdf": b"%PDF-1.4\n" + bytes(range(256)) * 9,
        "twins.csv": b"text,text\na lobster,a crab\n" * 90,
        "commas.csv": b",,\n1,2,3\n" * 50,
        "deep.jsonl": b"[" * 5000 + b"]" * 5000 + b"\n",
        "digits.jsonl": b'{"text": ' + b"1" * 5000 + b"}\n",
        "mixed.jsonl": b'{"text": "hello there my friend"}\n[1]\n"string"\n3\nnull\n' * 30,
        "array.json": b"[]",
        "object.json": b"{}",
        "cut.json": b'[{"text": "hello',
        "nested.html": nested.encode(),
        "entities.html": b"<p>&lt;&#0;&#xD800;&bogus; caf&eacute; words and words</p>" * 99,
    }.items():
        (folder / name).write_bytes(content)


def make_runs(folder):
    good, runs = folder / "runs" / "good", folder / "runs"
    (runs / "nothing").mkdir()
    (runs / "my run").mkdir()
    (runs / "file").write_text("a file where a run is expected")
    for name, broken in (
        ("badconfig", lambda run: (run / "config.json").write_text("{")),
        ("listconfig", lambda run: (run / "config.json").write_text("[]")),
        ("noconfig", lambda run: (run / "config.json").unlink()),
        ("oddmetrics", lambda run: (run / "metrics.jsonl").write_text('{"step": "x"}\n{\n\x00\n')),
        ("oddstatus", lambda run: (run / "status.json").write_text('{"state": 5}')),
    ):
        run = runs / name
        run.mkdir()
        for file in ("config.json", "metrics.jsonl", "status.json", "tiny_gpt_best.pt", "train.log"):
            (run / file).write_bytes((good / file).read_bytes())
        broken(run)


# (command line, exit code, error code; "" for none: success, or a usage error that the parser explains)
CASES = [
    ("generate --checkpoint empty.pt", 3, "not-a-model-file"),
    ("generate --checkpoint cut.pt", 3, "not-a-model-file"),
    ("generate --checkpoint cut1.pt", 3, "not-a-model-file"),
    ("generate --checkpoint longer.pt", 3, "not-a-model-file"),
    ("generate --checkpoint flipped.pt", 3, "not-a-model-file"),
    ("generate --checkpoint zeros.pt", 3, "not-a-model-file"),
    ("generate --checkpoint text.pt", 3, "not-a-model-file"),
    ("generate --checkpoint page.pt", 3, "not-a-model-file"),
    ("generate --checkpoint zip.pt", 3, "not-a-model-file"),
    ("generate --checkpoint list.pt", 3, "not-a-model-file"),
    ("generate --checkpoint foreign.pt", 3, "model-file-foreign"),
    ("generate --checkpoint version.pt", 3, "model-file-version"),
    ("generate --checkpoint parts.pt", 3, "model-file-incomplete"),
    ("generate --checkpoint half.pt", 3, "not-a-model-file"),
    ("generate --checkpoint object.pt", 3, "not-a-model-file"),
    ("generate --checkpoint link.pt --max-tokens 2", 0, ""),
    ("generate --checkpoint loop.pt", 3, "model-not-found"),
    ("generate --checkpoint dangling.pt", 3, "model-not-found"),
    ("generate --checkpoint folder.pt", 3, "folder-without-model"),
    ("generate --checkpoint pipe.pt", 3, "model-file-not-regular"),
    ("generate --checkpoint hf", 3, "folder-without-model"),
    ("generate --checkpoint hf2", 3, "hf-setting-unsupported"),
    ("generate --checkpoint lora", 3, "adapter-not-a-model"),
    ("generate --checkpoint bad.gguf", 3, "gguf-damaged"),
    ("generate --checkpoint /dev/null", 3, "model-file-not-regular"),
    ("generate --checkpoint /dev/zero", 3, "model-file-not-regular"),
    ("generate --checkpoint ''", 0, ""),
    ("generate --checkpoint ' '", 3, "model-not-found"),
    ("generate --checkpoint runs/file", 3, "not-a-model-file"),
    ("generate --checkpoint runs/nothing", 3, "folder-without-model"),
    ("generate --checkpoint good.pt/", 0, ""),
    ("generate --checkpoint ~nosuchuser/x.pt", 3, "model-not-found"),
    ("generate --checkpoint good.pt --max-tokens 0", 2, "value-not-positive"),
    ("generate --checkpoint good.pt --max-tokens -1", 2, "value-not-positive"),
    ("generate --checkpoint good.pt --max-tokens 1e1", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 1e-3", 2, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --temperature nan", 2, "temperature-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --temperature inf", 2, "temperature-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --temperature -1", 2, "temperature-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --temperature 1e-300", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --temperature 1e300", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --top-k -1", 2, "top-k-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --top-k 99999999", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --top-p 0", 2, "top-p-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --top-p 2", 2, "top-p-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --min-p 1.5", 2, "min-p-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --repetition-penalty 0", 2, "repetition-penalty-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --repetition-penalty nan", 2, "repetition-penalty-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --seed -1", 2, "seed-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --seed 99999999999999999999999", 2, "seed-out-of-range"),
    ("generate --checkpoint good.pt --max-tokens 3 --num-samples 0", 2, "value-not-positive"),
    ("generate --checkpoint good.pt --max-tokens 3 --num-samples -3", 2, "value-not-positive"),
    ("generate --checkpoint good.pt --max-tokens 3 --stop ''", 2, "stop-empty"),
    ("generate --checkpoint good.pt --max-tokens 3 --stop '\\n' 'the'", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --prompt ''", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --prompt '\\x00'", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --prompt-file nosuch.txt", 3, "prompt-file-unreadable"),
    ("generate --checkpoint good.pt --max-tokens 3 --prompt-file txt.d", 3, "prompt-file-unreadable"),
    ("generate --checkpoint good.pt --max-tokens 3 --prompt-file nul.txt", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --prompt-file empty.txt", 0, ""),
    ("generate --checkpoint good.pt --max-tokens 3 --prompt-file pic.txt", 3, "prompt-file-not-utf8"),
    ("generate --checkpoint good.pt --max-tokens 3 --device nosuch", 2, "device-unavailable"),
    ("generate --checkpoint good.pt --max-tokens 3 --device cuda:-1", 2, "device-unavailable"),
    ("generate --checkpoint good.pt --max-tokens 3 --device ''", 2, "device-unavailable"),
    ("generate --checkpoint good.pt --max-tokens 3 --json", 0, ""),
    ("generate --checkpoint good.pt extra words", 2, ""),
    ("generate --nosuchflag", 2, ""),
    ("generate --prompt", 2, ""),
    ("eval good.pt --data text.txt", 2, ""),
    ("export good.pt --to hf --out text.txt", 2, "output-exists"),
    ("export good.pt --to hf --out runs", 2, "output-exists"),
    ("export good.pt --to hf --out text.txt/below", 5, "not-writable"),
    ("export good.pt --to nosuch", 2, ""),
    ("export good.pt --to hf --out /proc/nosuch", 5, "not-writable"),
    ("export cut.pt --to gguf --out out1", 3, "not-a-model-file"),
    ("export good.pt", 2, ""),
    ("import nosuch", 3, "not-a-model-folder"),
    ("import hf", 3, "not-json"),
    ("import hf2", 3, "hf-setting-unsupported"),
    ("import lora", 3, "adapter-not-a-model"),
    ("import bad.gguf", 3, "gguf-damaged"),
    ("import text.txt", 3, "not-a-model-folder"),
    ("import good.pt", 3, "import-of-a-model-file"),
    ("import ''", 3, "model-name-empty"),
    ("import /dev/null", 3, "not-a-model-folder"),
    ("import empty.pt", 3, "not-a-model-folder"),
    ("data empty.txt", 3, "file-empty"),
    ("data blank.txt", 3, "file-empty"),
    ("data nul.txt", 3, "file-not-text"),
    ("data one.txt", 0, ""),
    ("data ./-dash.txt", 0, ""),
    ("data -- -dash.txt", 0, ""),
    ('data "a b \'c\\".txt"', 0, ""),
    ("data 'nosuch*.txt'", 3, "pattern-has-no-match"),
    ("data '['", 3, "pattern-has-no-match"),
    ("data txt.d", 3, "folder-has-no-files"),
    ("data pic.txt", 3, "file-not-text-format"),
    ("data cut.gz", 3, "file-damaged"),
    ("data bad.zip", 3, "file-damaged"),
    ("data bad.parquet", 3, "parquet-damaged"),
    ("data bad.epub", 3, "epub-malformed"),
    ("data bad.jsonl", 3, "line-not-json"),
    ("data noform.csv --text-field c", 3, "text-field-missing"),
    ("data noform.csv --text-field 9", 3, "text-field-missing"),
    ("data noform.csv --text-field ''", 3, "text-field-missing"),
    ("data text.txt --encoding utf-99", 3, "encoding-unknown"),
    ("data text.txt --max-unpacked -1", 3, "size-invalid"),
    ("data text.txt --max-unpacked lots", 3, "size-invalid"),
    ("data text.txt --val-fraction 0", 2, "val-fraction-out-of-range"),
    ("data text.txt --val-fraction 1", 2, "val-fraction-out-of-range"),
    ("data text.txt --val-fraction nan", 2, "val-fraction-out-of-range"),
    ("data text.txt --val nosuch.txt", 3, "source-not-found"),
    ("data pipe.txt/x", 3, "source-not-found"),
    ("data ftp://example.org/a.txt", 3, "address-unsupported"),
    ("data file:///etc/passwd", 3, "address-unsupported"),
    ("data ''", 3, "source-empty"),
    ("data list extra", 3, "source-not-found"),
    ("resume nothing", 3, "no-intact-checkpoint"),
    ("resume file", 3, "run-not-found"),
    ("resume badconfig", 3, "no-intact-checkpoint"),
    ("resume listconfig", 3, "no-intact-checkpoint"),
    ("resume noconfig", 3, "no-intact-checkpoint"),
    ("resume nosuch", 3, "run-not-found"),
    ("resume good", 2, "run-finished"),
    ("resume good --steps 1", 2, "run-finished"),
    ("resume good --for 0s", 2, "duration-invalid"),
    ("resume good --for -1h", 2, "duration-invalid"),
    ("resume good --until 99:99", 2, "time-of-day-invalid"),
    ("resume ../..", 3, "no-intact-checkpoint"),
    ("resume runs/good/config.json", 3, "run-not-found"),
    ("report badconfig", 0, ""),
    ("report listconfig", 0, ""),
    ("report noconfig", 0, ""),
    ("report oddmetrics", 0, ""),
    ("report oddstatus", 0, ""),
    ("report file", 3, "run-not-found"),
    ("report nosuch", 3, "run-not-found"),
    ("runs nosuchword", 2, "runs-action-unknown"),
    ("train text.txt --out-dir text.txt", 5, "folder-not-writable"),
    ("train text.txt --out-dir runs/file", 5, "folder-not-writable"),
    ("train text.txt --out-dir /proc/x", 5, "folder-not-writable"),
    ("train text.txt --out-dir loop.pt", 3, "path-is-a-link-loop"),
    ("train text.txt --steps 0", 2, "budget-zero"),
    ("train text.txt --steps -5", 2, "budget-out-of-range"),
    ("train text.txt --steps 1.5", 2, ""),
    ("train text.txt --steps 99999999999999999999", 2, "budget-out-of-range"),
    ("train text.txt --for 1h --steps 5", 2, "several-budgets"),
    ("train text.txt --for nan", 2, "duration-invalid"),
    ("train text.txt --for 1e9h", 2, "duration-invalid"),
    ("train text.txt --until yesterday", 2, "time-of-day-invalid"),
    ("train text.txt --learning-rate nan", 2, "value-not-positive"),
    ("train text.txt --learning-rate -1", 2, "value-not-positive"),
    ("train text.txt --learning-rate inf", 2, "value-infinite"),
    ("train text.txt --batch-size 0", 2, "value-not-positive"),
    ("train text.txt --block-size 0", 2, "value-not-positive"),
    ("train text.txt --block-size 99999999", 3, "text-too-short"),
    ("train text.txt --n-layer 0", 2, "value-not-positive"),
    ("train text.txt --d-model 0", 2, "value-not-positive"),
    ("train text.txt --dropout 1", 2, "dropout-out-of-range"),
    ("train text.txt --dropout -0.1", 2, "dropout-out-of-range"),
    ("train text.txt --seed -1", 2, "seed-out-of-range"),
    ("train text.txt --seed 1e10", 2, ""),
    ("train text.txt --vocab-size -1", 2, "vocab-size-out-of-range"),
    ("train text.txt --grad-accum-steps 0", 2, "value-not-positive"),
    ("train text.txt --eval-interval 0", 2, "value-not-positive"),
    ("train text.txt --config runs/badconfig/config.json", 3, "config-not-json"),
    ("train text.txt --config runs/listconfig/config.json", 3, "config-not-an-object"),
    ("train text.txt --config txt.d", 3, "config-unreadable"),
    ("train text.txt --start-from cut.pt", 3, "not-a-model-file"),
    ("train text.txt --start-from nosuch.pt", 3, "model-not-found"),
    ("train text.txt --start-from pipe.pt", 3, "model-file-not-regular"),
    ("train text.txt --tokenizer text.txt", 2, "tokenizer-unknown"),
    ("train text.txt --tokenizer txt.d", 2, "tokenizer-unknown"),
    ("train text.txt --recipe nosuch", 2, ""),
    ("train text.txt --resume --new", 2, "resume-and-new"),
    ("train text.txt --resume", 2, "not-resumable"),
    ("train pipe.pt/x", 3, "source-not-found"),
    ("train --data", 2, "data-missing"),
    ("train text.txt --notify nosuch", 2, "notify-address-unusable"),
    ("train text.txt --notify ftp://x", 2, "notify-address-unusable"),
    ("train text.txt --track nosuch", 2, ""),
    ("plan nosuch.txt", 3, "source-not-found"),
    ("plan empty.txt", 3, "file-empty"),
    ("plan text.txt --for 0h", 2, "duration-invalid"),
    ("plan text.txt --start-from good.pt --n-layer 7", 2, "start-from-shape-conflict"),
    ("doctor --device nosuch", 2, "device-unavailable"),
    ("serve nosuch", 3, "model-not-found"),
    ("serve good.pt --port 99999", 2, "port-out-of-range"),
    ("serve good.pt --port -1", 2, "port-out-of-range"),
    ("play nosuch", 3, "model-not-found"),
    ("play cut.pt", 3, "not-a-model-file"),
    ("watch nosuch", 3, "run-not-found"),
    ("nosuchcommand", 2, ""),
    ("''", 2, ""),
    ("--nosuchflag", 2, ""),
    ("eval good.pt nosuch.txt", 3, "source-not-found"),
    ("eval good.pt one.txt", 3, "text-too-short-to-score"),
    ("eval good.pt blank.txt", 3, "file-empty"),
    ("eval cut.pt text.txt", 3, "not-a-model-file"),
    ("eval nosuch text.txt", 3, "model-not-found"),
    ("eval good.pt ''", 3, "source-empty"),
    ("data text.txt ''", 3, "source-empty"),
    # Names that a shell took apart, words meant as a prompt, flags of other tools.
    ("train my book.txt", 3, "path-not-quoted"),
    ("train text.txt my book.txt --steps 3", 3, "path-not-quoted"),
    ("train --data my book.txt", 3, "path-not-quoted"),
    ("plan my book.txt", 3, "path-not-quoted"),
    ("data my book.txt", 3, "path-not-quoted"),
    ("eval good.pt my book.txt", 3, "path-not-quoted"),
    ("resume my run", 3, "path-not-quoted"),
    ("report my run", 3, "path-not-quoted"),
    ("generate 'The lobster'", 3, "prompt-as-model"),
    ("generate The lobster", 2, "words-as-prompt"),
    ("train text.txt --lr 3e-4", 2, "flag-of-another-tool"),
    ("train text.txt --wandb", 2, "flag-of-another-tool"),
    ("train text.txt --gpus 2", 2, "flag-of-another-tool"),
    ("train text.txt --max-iters 5000", 2, "flag-of-another-tool"),
    # Sizes that no memory holds, known before anything is measured.
    ("train text.txt --n-layer 1000000", 5, "not-enough-memory"),
    ("train text.txt --n-head 10000000", 5, "not-enough-memory"),
    ("train text.txt --d-model 1000000000000", 5, "not-enough-memory"),
    ("train text.txt --d-model 129", 2, "head-dim-odd"),
    ("train text.txt --n-head 3 --d-model 128", 2, "d-model-not-divisible"),
    ("train text.txt --recipe overnight --d-ff 1000000000000", 5, "not-enough-memory"),
    ("plan text.txt --batch-size 1000000000 --n-layer 1 --d-model 16", 5, "not-enough-memory"),
    ("report nothing", 3, "folder-without-run"),
    ("report txt.d", 3, "folder-without-run"),
    ("watch nothing", 3, "folder-without-run"),
    # Texts in odd forms.
    ("data crlf.txt", 0, ""),
    ("data cr.txt", 0, ""),
    ("data utf32.txt", 0, ""),
    ("data surrogates.txt", 0, ""),
    ("data japanese.txt", 3, "text-not-utf8"),
    ("data japanese.txt --encoding cp932", 0, ""),
    ("data escapes.txt", 3, "file-not-text"),
    ("data longer.gz", 3, "file-damaged"),
    ("data twice.gz", 0, ""),
    ("data a.pdf", 3, "file-not-text-format"),
    ("data twins.csv --text-field text", 0, ""),
    ("data commas.csv", 3, "text-field-missing"),
    ("data deep.jsonl", 3, "json-invalid"),
    ("data digits.jsonl", 3, "line-not-json"),
    ("data mixed.jsonl", 0, ""),
    ("data array.json", 3, "file-empty"),
    ("data object.json", 3, "text-field-missing"),
    ("data cut.json", 3, "json-invalid"),
    ("data nested.html", 0, ""),
    ("data entities.html", 0, ""),
    ("data text.txt text.txt", 0, ""),
    ("data text.txt --val text.txt", 0, ""),
    ("data 'nosuch.txt|text.txt'", 0, ""),
    ("data loop.pt", 3, "source-is-a-dead-link"),
    ("data dangling.pt", 3, "source-is-a-dead-link"),
    ("data https://", 3, "url-invalid"),
    ("data 'http://[::1/x'", 3, "url-malformed"),
    ("data hf:", 3, "hub-name-invalid"),
    ("data hf:../../etc", 3, "hub-name-invalid"),
    ("data text.txt --encoding utf-16", 3, "text-not-decodable"),
    ("data text.txt --max-unpacked 0", 3, "size-invalid"),
    ("data list list", 3, "source-not-found"),
    ("data --json", 2, "text-not-named"),
    # Numbers and units.
    ("train text.txt --for '1 fortnight'", 2, "duration-invalid"),
    ("train text.txt --for ''", 2, "budget-zero"),
    ("train text.txt --for 1h --until 7am", 2, "several-budgets"),
    ("train text.txt --tokens 10MM", 2, ""),
    ("train text.txt --tokens 99999999999999999999k", 2, "budget-out-of-range"),
    ("train text.txt --steps 0x10", 2, ""),
    ("train text.txt --learning-rate 1e400", 2, "value-infinite"),
    ("train text.txt --learning-rate 3,5e-4", 2, ""),
    ("train text.txt --dropout 10%", 2, ""),
    ("train text.txt --weight-decay inf", 2, "weight-decay-infinite"),
    ("train text.txt --weight-decay -1", 2, "value-negative"),
    ("train text.txt --grad-clip nan", 2, "value-negative"),
    ("train text.txt --beta2 1", 2, "fraction-out-of-range"),
    ("train text.txt --cooldown nan", 2, "cooldown-out-of-range"),
    ("train text.txt --checkpoint-minutes 0", 2, "value-not-positive"),
    ("train text.txt --checkpoint-minutes nan", 2, "value-not-positive"),
    ("train text.txt --devices 1.5", 2, "devices-invalid"),
    ("train text.txt --teachers -1", 2, "teachers-out-of-range"),
    ("train text.txt --students -1", 2, "students-out-of-range"),
    ("train text.txt --first-share 1", 2, "share-out-of-range"),
    ("train text.txt --rope-theta nan", 2, "rope-theta-out-of-range"),
    ("train text.txt --head-dim -2", 2, "head-dim-out-of-range"),
    ("train text.txt --n-layer=", 2, ""),
    ("train text.txt -n 3", 2, ""),
    ("train text.txt -- --for 6h", 3, "source-not-found"),
    ("train text.txt --notify 'http://[::1'", 2, "notify-address-unusable"),
    ("plan text.txt --json --for 0", 2, "budget-zero"),
    # Other commands, odd words.
    ("serve good.pt --host ''", 2, "no-host"),
    ("serve good.pt --host 0.0.0.0", 2, "no-api-key"),
    ("serve good.pt --port 0x50", 2, ""),
    ("serve good.pt --max-batch 0", 2, "value-not-positive"),
    ("play good.pt good.pt", 2, ""),
    ("eval good.pt", 2, "text-not-named"),
    ("eval good.pt text.txt --batch-size 0", 2, "value-not-positive"),
    ("eval good.pt text.txt --device cuda:9", 2, "device-unavailable"),
    ("runs compare good", 2, "runs-not-named"),
    ("runs remove", 2, "runs-not-named"),
    ("runs remove / --yes", 3, "no-run-to-remove"),
    ("runs remove . --yes", 3, "no-run-to-remove"),
    ("runs ''", 2, "runs-action-unknown"),
    ("runs --sort nosuch", 2, ""),
    ("track", 2, ""),
    ("track good --to nosuch", 2, ""),
    ("generate good.pt --interactive --prompt-file text.txt", 2, "interactive-with-prompt-file"),
    ("generate good.pt --interactive --json --max-tokens 2", 0, ""),
    ("generate good.pt --precision int4", 2, ""),
    ("generate good.pt --num-samples 1e9", 2, ""),
    ("generate good.pt --stop a b c --max-tokens 2", 0, ""),
    ("generate good.pt --prompt a --prompt b --max-tokens 2", 0, ""),
    ("import '' --out x", 3, "model-name-empty"),
    ("doctor nosuch", 2, ""),
    ("doctor --device cpu:0", 2, "device-unavailable"),
    ("help", 0, ""),
    ("help train", 0, ""),
    ("help nosuchcommand", 2, ""),
    ("-V", 2, ""),
]


@pytest.mark.parametrize(("line", "exit_code", "code"), CASES, ids=[case[0] for case in CASES])
def test_it_ends_with_words_and_an_exit_code(faulty, line, exit_code, code, capsys, monkeypatch):
    monkeypatch.chdir(faulty)
    monkeypatch.setattr(launch, "is_watched", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    found, to_known_error = [], process.to_known_error
    monkeypatch.setattr(process, "to_known_error", lambda failure: found.append(to_known_error(failure)) or found[-1])
    before = set(os.listdir(faulty))
    monkeypatch.setattr(sys, "argv", ["tiny-gpt", *shlex.split(line)])
    assert main() == exit_code
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out and "bug in tiny_gpt" not in shown.err
    assert [error.code for error in found] == ([code] if code else [])
    if code:
        assert re.fullmatch(r"error: .+\n(.+\n)?", shown.err.split("once)\n")[-1]), shown.err
    assert set(os.listdir(faulty)) == before, "nothing was written"
