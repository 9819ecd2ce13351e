"""`tiny-gpt doctor`: what it prints and returns on safe and on broken machines."""

import json
import re

import pytest
import torch
from torch.nn import functional as F

from tests.numerics.wrong_kernels import linear_with_wrong_last_rows_in_3d_bf16, softmax_with_one_nan
from tiny_gpt import device
from tiny_gpt.cli import doctor, kept_checks
from tiny_gpt.cli.doctor import PrecisionReport, examine
from tiny_gpt.errors import UsageError
from tiny_gpt.numerics import self_test
from tiny_gpt.numerics.self_test import CHECKS
from tiny_gpt.planning.types import BackendChoice, Candidate

SECONDS = {"fused bf16": 0.0181, "fused fp32": 0.0582, "eager bf16": 0.0254}


@pytest.fixture
def few_checks(monkeypatch, tmp_path):
    """Two quick checks, and a machine on which auto chooses bf16; no results are kept yet."""
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path))
    checks = {name: CHECKS[name] for name in ("softmax", "linear, 3-D")}
    monkeypatch.setattr(self_test, "CHECKS", checks)
    monkeypatch.setattr(kept_checks, "CHECKS", checks)
    monkeypatch.setattr(device, "_bf16_is_faster", lambda device: True)

    def choose_backend(config, vocab_size, device_):
        precision = device.candidate_precisions("auto", device_)[0]
        return BackendChoice(Candidate("fused", precision), SECONDS, {"eager fp32": "it is Sunday"})

    monkeypatch.setattr(doctor, "choose_backend", choose_backend)


def test_a_sound_machine_is_safe(few_checks, capsys):
    assert examine("cpu") == 0
    out = capsys.readouterr().out
    assert "auto chooses cpu with bf16, backend fused: " in out
    assert "fused bf16 18 ms, fused fp32 58 ms, eager bf16 25 ms" in out
    assert "eager fp32 cannot be used here: it is Sunday\n" in out
    assert "Safe for training: cpu with fp32 or cpu with bf16." in out
    for fact in (torch.__version__, "memory", "disk", "fp32", "✓ "):
        assert fact in out
    assert "Not safe" not in out and "Train with" not in out
    assert max(map(len, out.splitlines())) <= 120


def test_results_of_a_sound_machine_are_kept(few_checks, monkeypatch, capsys):
    assert examine("cpu") == 0
    first = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(F, "linear", linear_with_wrong_last_rows_in_3d_bf16)  # what is kept is not computed again
    assert examine("cpu") == 0
    second = capsys.readouterr().out.splitlines()
    is_about_now = re.compile("memory|disk|compiling|Percentages")
    assert [line for line in first if not is_about_now.match(line)] == [
        line for line in second if not is_about_now.match(line)
    ]
    assert "ago; --again checks anew." in next(line for line in second if "Percentages" in line)
    assert examine("cpu", as_json=True) == 0
    assert all(report["age_s"] > 0 for report in json.loads(capsys.readouterr().out)["reports"])
    assert examine("cpu", again=True) == 1, "only --again finds the fault"
    monkeypatch.setattr(kept_checks, "MAX_KEPT_S", 0.0)
    assert examine("cpu") == 1


def test_results_of_a_faulty_machine_are_not_kept(few_checks, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", linear_with_wrong_last_rows_in_3d_bf16)
        assert examine("cpu") == 1
    assert examine("cpu") == 0
    kept = next((tmp_path / kept_checks.CHECKS_FOLDER).iterdir())
    kept.write_text("{")
    assert examine("cpu") == 0, "a damaged file is as good as none"


def test_wrong_bf16_is_named_with_the_flag_to_use(few_checks, monkeypatch, capsys):
    monkeypatch.setattr(F, "linear", linear_with_wrong_last_rows_in_3d_bf16)
    assert examine("all") == 1
    out = capsys.readouterr().out
    assert "Not safe: cpu with bf16 (linear, 3-D)." in out
    assert "Safe for training: cpu with fp32." in out and "Train with: --precision fp32" in out
    assert "✗" in out and "rounding explains" in out


def test_a_fault_that_auto_avoids_is_named_but_safe(few_checks, monkeypatch, capsys):
    monkeypatch.setattr(device, "_bf16_is_faster", lambda device: False)
    monkeypatch.setattr(F, "linear", linear_with_wrong_last_rows_in_3d_bf16)
    assert examine("cpu") == 0
    out = capsys.readouterr().out
    assert "auto chooses cpu with fp32" in out and "Not safe: cpu with bf16" in out and "Train with" not in out


def test_no_flags_are_given_where_nothing_is_safe(few_checks, monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "softmax", softmax_with_one_nan)
    assert examine("cpu") == 1
    out = capsys.readouterr().out
    assert "Nothing tested here is safe" in out and "✗ NaN" in out and "Train with" not in out


def test_json_has_all_results(few_checks, monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "softmax", softmax_with_one_nan)
    monkeypatch.setattr(F, "linear", linear_with_wrong_last_rows_in_3d_bf16)
    assert examine("cpu", as_json=True) == 1

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["auto"] == {"device": "cpu", "precision": "bf16", "backend": "fused", "seconds": SECONDS}
    assert found["safe"] is False and found["flags"] == []
    assert [(report["precision"], report["safe"]) for report in found["reports"]] == [("fp32", False), ("bf16", False)]
    softmax, linear = found["reports"][0]["checks"]
    assert softmax["error"] is None and not softmax["ok"] and linear["ok"] and linear["error"] < linear["bound"]


def test_an_unknown_device_is_a_usage_error():
    with pytest.raises(UsageError, match="cuda:7"):
        examine("cuda:7")


@pytest.mark.parametrize(
    ("battery", "line"),
    [
        ({"percent": 41, "plugged_in": False}, "battery     41%; plug it in before training overnight"),
        ({"percent": 83, "plugged_in": True}, "battery     83%, plugged in"),
        ({"percent": 83, "plugged_in": None}, "battery     83%"),
    ],
)
def test_a_machine_short_of_resources_gets_advice(battery, line):
    facts = doctor.machine_facts() | {"battery": battery, "free_disk_bytes": 1e9, "free_memory_bytes": 1e9}
    lines = list(doctor.fact_lines(facts))
    assert line in lines
    assert "make room" in lines[2] and "close other programs" in lines[1]


def test_a_second_device_is_recommended_by_its_flags(monkeypatch):
    monkeypatch.setattr(doctor, "available_devices", lambda: ["mps", "cpu"])
    cpu = [PrecisionReport("cpu", name, name == "fp32", []) for name in ("fp32", "bf16")]
    assert doctor.flags(cpu) == ["--device", "cpu"]
    assert doctor.flags(cpu[1:]) == ["--device", "cpu", "--precision", "bf16"]
