"""The notebook in examples/, and Ctrl+C, in a real Jupyter kernel."""

import json
import queue
from pathlib import Path

import pytest

from tests.api.test_training import TINY
from tests.run.support import TEXT
from tiny_gpt.bootstrap import ROOT

pytestmark = pytest.mark.slow
NOTEBOOK = Path(ROOT) / "examples" / "train_in_a_notebook.ipynb"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel in an empty folder: `execute(code)` returns its outputs and raises if the code does."""
    manager = pytest.importorskip("jupyter_client.manager", reason="ipykernel is not installed")
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "animals.txt").write_text(TEXT)
    process, client = manager.start_new_kernel(cwd=str(folder), startup_timeout=120)
    yield process, client
    client.stop_channels()
    process.shutdown_kernel(now=True)


def execute(client, code, on_output=lambda output: None):
    outputs = []

    def take(message):
        outputs.append(message["content"] | {"kind": message["msg_type"]})
        on_output(outputs[-1])

    reply = client.execute_interactive(code, output_hook=take, timeout=300)["content"]
    assert reply["status"] == "ok", "\n".join(reply.get("traceback", []))
    return outputs


def test_the_notebook_runs_from_top_to_bottom(kernel):
    """Its parameters are replaced by a short training; all other cells run as they are."""
    small = {name: value for name, value in TINY.items() if name not in ("epochs", "warmup_steps")}
    parameters = f"source = 'animals.txt'\nbudget = {{'steps': 20}}\nmore = {{'steps': 30}}\nsettings = {small!r}"
    shown = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            is_parameters = "parameters" in cell["metadata"].get("tags", [])
            shown += execute(kernel[1], parameters if is_parameters else "".join(cell["source"]))
    displays = [output["data"].get("text/html", "") for output in shown if output["kind"] == "display_data"]
    updates = [output["data"]["text/html"] for output in shown if output["kind"] == "update_display_data"]
    assert any("<progress" in html for html in displays) and "Finished" in updates[-1]
    texts = "".join(output.get("text", "") for output in shown)
    assert "expected" in texts and "4 evaluations" in texts
    last = next(output["data"]["text/plain"] for output in reversed(shown) if output["kind"] == "execute_result")
    assert last.startswith("<Run") and "finished" in last


def test_interrupting_the_kernel_saves_the_run(kernel):
    process, client = kernel
    settings = TINY | {"epochs": 5000}
    waiting = queue.SimpleQueue()
    waiting.put("interrupt")

    def interrupt_when_trained(output):
        if "evaluat" in str(output) or "bits per byte" in str(output.get("data", "")):
            while not waiting.empty():
                waiting.get()
                process.interrupt_kernel()

    execute(client, f"run = tiny_gpt.train('animals.txt', **{settings!r})", interrupt_when_trained)
    shown = execute(client, "print(run.state, run.finished.last_step < 50000, run.best_model is not None)")
    assert "".join(output.get("text", "") for output in shown).split() == ["stopped", "True", "True"]
