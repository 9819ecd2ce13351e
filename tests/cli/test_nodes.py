"""`tiny-gpt doctor --nodes`, and the files of examples/cluster that start it before a training."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.cli.devices import n_processes
from tiny_gpt.cli.nodes import differences
from tiny_gpt.config import RunConfig, TrainConfig
from tiny_gpt.errors import UsageError

EXAMPLES = Path(ROOT) / "examples" / "cluster"
RANK: dict[str, Any] = {
    "host": "a",
    "tiny_gpt": "1",
    "torch": "2.13",
    "device": "x86_64",
    "threads": 1,
    "text_sha256": "",
    "clock": 1.0,
}


def test_equal_ranks_can_train_together() -> None:
    assert differences([RANK | {"rank": 0}, RANK | {"rank": 1, "host": "b", "clock": 1.5}]) == []


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"torch": "2.12"}, "another version of torch: 2.13 (rank 0 on a); 2.12 (rank 1 on b)"),
        ({"text_sha256": "ab12"}, "another text: none (rank 0 on a); ab12 (rank 1 on b)"),
        ({"clock": 9.0}, "clocks differ by 8 s"),
    ],
)
def test_differences_name_the_ranks(other: dict[str, Any], line: str) -> None:
    assert differences([RANK | {"rank": 0}, RANK | {"rank": 1, "host": "b"} | other]) == [line]


# --- examples/cluster ---


def scripts() -> dict[str, str]:
    """Every bash program in the examples, by the name of its file."""
    yaml = pytest.importorskip("yaml")
    sky = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    assert sky["num_nodes"] == 2 and service["kind"] == "Service" and job["kind"] == "Job"
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return {
        "torchrun.sh": (EXAMPLES / "torchrun.sh").read_text(),
        "slurm.sbatch": (EXAMPLES / "slurm.sbatch").read_text(),
        "skypilot.yaml": sky["run"],
        "kubernetes.yaml": container["args"][0],
    }


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_examples_start_what_exists(tmp_path: Path) -> None:
    """Each program runs with commands in place of torchrun and srun that print what they were given."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("torchrun", "srun", "scontrol", "nvidia-smi"):
        (bin_ / name).write_text(f'#!/bin/bash\n[ {name} = scontrol ] && echo node1 || echo {name} "$@"\n')
        (bin_ / name).chmod(0o755)
    cluster = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "JOB_COMPLETION_INDEX": "0"}
    cluster |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "0"}
    cluster |= {"SKYPILOT_NUM_GPUS_PER_NODE": "8", "PATH": f"{bin_}:{os.environ['PATH']}"}
    for name, script in scripts().items():
        arguments = {"torchrun.sh": ["node1", "2", "a.txt"], "slurm.sbatch": ["a.txt"]}.get(name, [])
        done = subprocess.run(
            ["bash", "-c", script, name, *arguments], env=cluster, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        checked, trained = done.stdout.splitlines()
        assert "-m tiny_gpt doctor --nodes --data" in checked and "--nnodes 2" in checked, name
        assert "-m tiny_gpt train" in trained and "--nproc-per-node" in trained, name
        check_flags(trained)


def check_flags(line: str) -> None:
    """The flags of both programs are known to them."""
    from torch.distributed.run import get_args_parser

    from tests.test_docs import flags_of

    launcher, _, command = line.partition("-m tiny_gpt train")
    known = set(get_args_parser()._option_string_actions)
    assert set(re.findall(r"--[a-z-]+", launcher)) <= known
    assert set(re.findall(r"--[a-z-]+", command)) <= flags_of("train")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs ShellCheck")
def test_shellcheck_finds_nothing_in_the_examples() -> None:
    for name, script in scripts().items():
        done = subprocess.run(["shellcheck", "-s", "bash", "-"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stdout}"


def test_the_kubernetes_example_has_the_form_of_its_schema() -> None:
    yaml = pytest.importorskip("yaml")
    schema = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for part in yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()):
        schema.validate(part, schema.latest_version(), strict=True)


def test_skypilot_reads_its_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(EXAMPLES)
    sky = pytest.importorskip("sky", reason="needs SkyPilot")
    assert sky.Task.from_yaml("skypilot.yaml").num_nodes == 2


# --- --devices ---


@pytest.mark.parametrize(
    ("train", "code"),
    [
        ({"devices": "0"}, "devices-invalid"),
        ({"devices": "many"}, "devices-invalid"),
        ({"devices": "1000", "device": "cpu"}, "too-few-devices"),
        ({"devices": "2", "device": "cuda:1"}, "single-gpu-named"),
        ({"devices": "2", "device": "mps"}, "mps-not-shareable"),
    ],
)
def test_impossible_devices_are_refused(train: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as refused:
        n_processes(RunConfig(train=TrainConfig(**train)))
    assert refused.value.code == code


def test_a_run_of_more_devices_than_there_are_is_told_how_many_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    train = TrainConfig(devices="2", device="cpu")
    with pytest.raises(UsageError, match="1 core; give --devices 1"):
        n_processes(RunConfig(train=train))
    assert n_processes(RunConfig(train=TrainConfig(devices="1", device="cpu"))) == 1


def test_a_cpu_is_one_device_unless_it_is_divided() -> None:
    assert n_processes(RunConfig()) == 1
    assert n_processes(RunConfig(train=TrainConfig(devices="all", device="cpu"))) == 1
    if (os.cpu_count() or 1) > 1:
        assert n_processes(RunConfig(train=TrainConfig(devices="2", device="cpu"))) == 2
