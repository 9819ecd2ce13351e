"""Models of the Hugging Face hub, from a server that answers as the hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from tiny_gpt import hub
from tiny_gpt.bootstrap import ROOT
from tiny_gpt.config import ModelConfig, RunConfig
from tiny_gpt.errors import BadInputError
from tiny_gpt.export.export import export
from tiny_gpt.model.gpt import GPT
from tiny_gpt.model_io.model_file import LoadedModel
from tiny_gpt.model_io.stored_model import Progress
from tiny_gpt.run.folders import find_model
from tiny_gpt.tokenizer.base import ByteTokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def endpoint(tmp_path):
    """The address of a hub with one model, owner/tiny."""
    config, folder = ModelConfig(n_layer=1, n_head=2, d_model=8, block_size=8), tmp_path / "model"
    model = GPT(config, ByteTokenizer().vocab_size).eval()
    progress = Progress(1, 1, 5.5, 5.5, 5.5)
    export(LoadedModel(model, ByteTokenizer(), progress, RunConfig(model=config).to_flat()), "hf", folder)
    (folder / "pytorch_model.bin").write_bytes(b"never asked for")

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            if path.startswith("/api/models/owner/tiny/revision/"):
                siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                return self.answer(json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode())
            if path.startswith("/api/models/owner/tiny/tree/"):  # what newer versions of huggingface_hub ask for
                files = [file for file in sorted(folder.iterdir()) if file.is_file()]
                tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
                return self.answer(json.dumps(tree).encode())
            file = folder / path.rsplit("/", 1)[-1]
            if f"/owner/tiny/resolve/{COMMIT}/" in path and file.is_file() and file.suffix != ".bin":
                return self.answer(file.read_bytes())
            return self.answer(b"", 404)

        do_HEAD = do_GET

        def answer(self, content, status=200):
            self.send_response(status)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_model_of_the_hub_is_imported_and_then_needs_no_network(endpoint, tmp_path):
    def tiny_gpt(*args, **env):
        env = os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ROOT} | env
        return subprocess.run(
            [sys.executable, "-m", "tiny_gpt", *args], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    imported = tiny_gpt("import", "hf:owner/tiny", HF_ENDPOINT=endpoint)
    assert imported.returncode == 0, imported.stderr
    assert (tmp_path / "tiny.pt").is_file() and "Imported hf:owner/tiny as the model file tiny.pt" in imported.stdout
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    written = tiny_gpt("generate", "hf:owner/tiny", "--max-tokens", "3", "--prompt", "a", **offline)
    assert written.returncode == 0 and "--- 3 of 3 ---\na" in written.stdout, written.stderr
    missing = tiny_gpt("generate", "hf:owner/other", **offline)
    assert missing.returncode == 3 and "hf:owner/other is not on this machine" in missing.stderr
    unknown = tiny_gpt("import", "hf:owner/other", HF_ENDPOINT=endpoint)
    assert unknown.returncode == 3 and "hf:owner/other cannot be downloaded" in unknown.stderr


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The folder of a repository in huggingface_hub's cache, without a file."""
    folder = tmp_path / "models--owner--tiny" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    return folder


def test_a_repository_is_a_folder_and_a_gguf_file_a_file(snapshot):
    (snapshot / "model.safetensors").touch()
    (snapshot / "tiny.Q8_0.gguf").touch()
    assert find_model("hf:owner/tiny") == snapshot and hub.repository_name(snapshot) == "tiny"
    assert find_model("hf:owner/tiny/tiny.Q8_0.gguf") == snapshot / "tiny.Q8_0.gguf"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("hf:owner/tiny", "hub-has-no-model"),
        ("hf:owner/tiny/none.gguf", "hub-has-no-model"),
        ("hf:owner/tiny/model.bin", "hub-file-not-gguf"),
    ],
)
def test_a_repository_without_a_model_is_refused(snapshot, name, code):
    with pytest.raises(BadInputError) as error:
        find_model(name)
    assert error.value.code == code and name in str(error.value)
