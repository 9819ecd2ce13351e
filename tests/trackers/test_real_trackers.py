"""The trackers' own packages, offline: what they wrote is read back with them.

A tracker whose package is not installed is skipped: trackio and mlflow, with 30 and 60 packages that they need, are not
among those that the tests install.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.trackers.support import SAMPLE_TEXT, WrittenRun
from tiny_gpt.trackers.registry import TRACKERS, is_installed

# Each prints {"rows": [[step, val_loss, lr], ...], "samples": {step: text}, "config": {...}, "n_runs": ...} as JSON.
READERS = {
    "tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
found = EventAccumulator(folder + "/trackers/tensorboard", {"tensors": 0, "scalars": 0})
found.Reload()
rates = {event.step: event.value for event in found.Scalars("lr")}
rows = [[event.step, event.value, rates[event.step]] for event in found.Scalars("val_loss")]
samples = {event.step: event.tensor_proto.string_val[0].decode() for event in found.Tensors("sample")}
content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
hparams = HParamsPluginData.FromString(content).session_start_info.hparams
config = {name: value.number_value or value.string_value for name, value in hparams.items()}
n_runs = 1
""",
    "wandb": """
import glob, html, re
from wandb.proto.wandb_internal_pb2 import Record
def records(path):  # the log format of LevelDB behind a header of 7 bytes
    data, at, parts = open(path, "rb").read(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""
rows, samples, config, ids = {}, {}, {}, set()
for path in sorted(glob.glob(folder + "/trackers/wandb/wandb/offline-run-*/*.wandb")):
    for record in records(path):
        if record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "val_loss" in row:
                rows[row["step"]] = [row["step"], row["val_loss"], row["lr"]]
            if "sample.path" in row:
                page = open(os.path.dirname(path) + "/files/" + row["sample.path"]).read()
                samples[row["step"]] = html.unescape(re.search("<pre[^>]*>(.*)</pre>", page, re.DOTALL)[1])
rows, n_runs = list(rows.values()), len(ids)
""",
    "trackio": """
import trackio
(run,) = trackio.Api().runs("tiny_gpt")
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("tiny_gpt")
logs = SQLiteStorage.get_logs("tiny_gpt", name)
rows = [[row["step"], row["val_loss"], row["lr"]] for row in logs if "val_loss" in row]
samples = {row["step"]: row["sample"]["_value"] for row in logs if "sample" in row}
config, n_runs = SQLiteStorage.get_run_config("tiny_gpt", name), 1
""",
    "mlflow": """
import mlflow
client = mlflow.MlflowClient()
found = client.search_runs([client.get_experiment_by_name("tiny_gpt").experiment_id])
run = found[0]
rates = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "lr")}
rows = [[m.step, m.value, rates[m.step]] for m in client.get_metric_history(run.info.run_id, "val_loss")]
paths = [file.path for file in client.list_artifacts(run.info.run_id, "samples")]
text = {path: open(client.download_artifacts(run.info.run_id, path)).read() for path in paths}
samples = {int(path[-12:-4]): content for path, content in text.items()}
config, n_runs = run.data.params, len(found)
assert run.info.status == "FINISHED" and run.data.metrics["best/val_bits_per_byte"] == 1.7
""",
}
PRINT = "print(json.dumps({'rows': rows, 'samples': samples, 'config': config, 'n_runs': n_runs}))"


def test_every_tracker_is_read_back():
    assert READERS.keys() == TRACKERS.keys()


@pytest.fixture(params=READERS)
def name(request, tmp_path, monkeypatch):
    """Of a tracker that is installed and knows no account."""
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed: pip install {TRACKERS[request.param].package}")
    monkeypatch.chdir(tmp_path)
    for variable in [each for each in os.environ if each.startswith(("WANDB_", "TRACKIO_", "MLFLOW_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return request.param


@pytest.mark.slow
def test_tracker_has_the_run(name, tmp_path):
    """Also after a resume, which continues the same run there."""
    run = WrittenRun(tmp_path / "my_run")
    run.evaluate(50, 100, learning_rate=0.5)
    run.sample(50)
    track(run, name)
    run.evaluate(150, 200, learning_rate=0.25)
    run.sample(200)
    run.set_state("finished")
    track(run, name)
    found = read_back(name, run.folder)
    assert found["rows"] == [[50, 8.5, 0.5], [100, 8.0, 0.5], [150, 7.5, 0.25], [200, 7.0, 0.25]]
    # In Markdown an indented text is shown as it is.
    indented = "".join(f"    {line}\n" for line in SAMPLE_TEXT.splitlines())
    expected = indented if name in ("tensorboard", "trackio") else SAMPLE_TEXT
    assert found["samples"] == {"50": expected, "200": expected}
    assert float(found["config"]["n_layer"]) == 3 and float(found["config"]["n_parameters"]) == 3_222_784
    assert "my text.txt" in str(found["config"]["data"]) and found["n_runs"] == 1


MOVED = """
import sys
from pathlib import Path
from tests.trackers.support import WrittenRun
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.trackers.follower import Follower
run = WrittenRun(Path("my_run").absolute())
run.evaluate(50, 100)
follower = Follower(FollowedFolder(run.folder), sys.argv[1], print)
follower.send()
run.folder = run.folder.rename(Path("elsewhere").absolute())
run.evaluate(150)
run.sample(150)
run.set_state("finished")
follower.send()
follower.finish()
"""


@pytest.mark.slow
def test_tracker_follows_a_run_that_is_moved(name, tmp_path):
    python(MOVED, name)
    found = read_back(name, tmp_path / "elsewhere")
    # wandb has a file for each place, whose names need not be in the order of time.
    assert sorted(row[0] for row in found["rows"]) == [50, 100, 150] and [*found["samples"]] == ["150"]
    assert found["n_runs"] == 1 and not (tmp_path / "my_run").exists()


def track(run, name):
    python(
        "import sys; from tiny_gpt.cli.main import main; sys.exit(main(sys.argv[1:]))",
        "track",
        run.folder,
        "--to",
        name,
    )


def read_back(name, folder):
    printed = python(f"import json, os; folder = {str(folder)!r}\n{READERS[name]}\n{PRINT}")
    return json.loads(printed.splitlines()[-1])


def python(program, *args):
    done = subprocess.run([sys.executable, "-c", program, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
