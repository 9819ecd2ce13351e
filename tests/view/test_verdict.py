"""The verdict and its suggestions, on planted runs."""

import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from tests.view.support import PLAN, plant, stamp, write_state
from tiny_gpt.run.status import read_status, this_process
from tiny_gpt.view.run_folder import RunFolder
from tiny_gpt.view.signs import gap_in_words, signs_of
from tiny_gpt.view.verdict import MAX_SUGGESTIONS, judge


def verdict(folder, **options):
    found = judge(RunFolder(plant(folder / "night", **options)).view())
    assert len(found.suggestions) <= MAX_SUGGESTIONS and all(each.reason for each in found.suggestions)
    return found


def commands(found):
    return [suggestion.command for suggestion in found.suggestions]


def test_a_good_run(tmp_path):
    found = verdict(tmp_path, samples={100: "The"})
    assert (found.tone, found.headline) == ("good", "Finished well.")
    assert "Best 1.3" in found.sentence and "15 min 00 s of training" in found.sentence
    assert commands(found) == ["tiny-gpt generate night", "tiny-gpt export night --to gguf"]


def test_a_run_in_progress_says_when_it_ends(tmp_path):
    found = verdict(tmp_path, state="training", until=0.4)
    assert (found.tone, found.headline) == ("good", "Learning normally.")
    assert found.sentence.startswith("Ends ") and commands(found) == []


@pytest.mark.parametrize("n", [40, 4000])
def test_overfitting(tmp_path, n):
    found = verdict(tmp_path, kind="overfitted", n=n, step=4000 // n)
    assert found.tone == "warn" and "memorize" in found.headline
    assert commands(found)[0] == "tiny-gpt train book.txt more_text.txt --for 15m"
    assert commands(found)[1].startswith("tiny-gpt train book.txt --new --for "), "the time of the best model"
    minutes = int(commands(found)[1].split()[-1].rstrip("m"))
    assert 4 <= minutes <= 9


def test_too_short(tmp_path):
    found = verdict(tmp_path, plan=replace(PLAN, saturation_s=20_000.0))
    assert found.headline == "Finished well." and commands(found)[0] == "tiny-gpt resume night --for 8h"
    assert "resume" not in " ".join(commands(verdict(tmp_path, plan=PLAN)))


def test_rate_too_high(tmp_path):
    found = verdict(tmp_path, kind="too fast")
    assert found.tone == "warn" and "learning rate" in found.headline
    assert commands(found)[0] == "tiny-gpt train book.txt --new --learning-rate 0.001"
    log = ["step 900: the loss spiked at step 900: rolled back to step 400, with other batches and half the rate"]
    found = verdict(tmp_path, log=[*log, "step 300: skipped 5 steps up to step 300: loss or gradient NaN"])
    assert "1 rollback and 5 skipped steps" in found.suggestions[0].reason


def test_diverged(tmp_path):
    folder = plant(tmp_path / "night", kind="diverged", state="failed", until=0.9)
    write_state(folder, read_status(folder / "status.json"), error="it diverged", error_code="training-diverged")
    found = judge(RunFolder(folder).view())
    assert found.tone == "bad" and "out of control" in found.headline
    assert "--learning-rate" in commands(found)[0]


def test_text_too_small(tmp_path):
    found = verdict(tmp_path, kind="small text", step=1000)
    assert "more_text.txt" in commands(found)[0] and "41 times" in found.suggestions[0].reason
    few = signs_of(RunFolder(plant(tmp_path / "few", kind="small text", step=20)).view())
    assert not few.is_small_text and not few.is_memorizing, "less than one pass: there is nothing to memorize"


@pytest.mark.parametrize("state, doing", [("finished", "Finished"), ("training", "Learning")])
def test_headline_and_gap_agree(tmp_path, state, doing):
    view = RunFolder(plant(tmp_path / "night", kind="small text", step=1000, state=state)).view()
    assert judge(view).headline == f"{doing}, and memorizing your text: more text would help."
    assert gap_in_words(view) == "it is memorizing your text, which has done no harm so far"
    view = RunFolder(plant(tmp_path / "good", state=state)).view()
    assert "memoriz" not in judge(view).headline and gap_in_words(view) == "no sign of memorizing"
    view = RunFolder(plant(tmp_path / "once", kind="small text", step=20, state=state)).view()
    assert "memoriz" not in judge(view).headline and "differs" in gap_in_words(view)


def test_stopped_early(tmp_path):
    found = verdict(tmp_path, state="stopped", until=0.5)
    assert found.tone == "warn" and commands(found)[0] == "tiny-gpt resume night"
    assert commands(found)[1] == "tiny-gpt resume night --for 1m --cooldown 1"


def test_a_killed_process(tmp_path):
    folder = plant(tmp_path / "night", state="training", until=0.5)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = this_process(False) | dict(
            process_id=process.pid, process_started=psutil.Process(process.pid).create_time()
        )
        write_state(folder, read_status(folder / "status.json"), **identity)
        assert RunFolder(folder).view().state == "training"
        process.kill()
    found = judge(RunFolder(folder).view())
    assert found.tone == "bad" and "gone" in found.headline and commands(found)[0] == "tiny-gpt resume night"
    write_state(folder, read_status(folder / "status.json"), watchdog_id=this_process(False)["process_id"])
    assert RunFolder(folder).view().state == "restarting"


def test_a_pause_and_its_end(tmp_path):
    folder = plant(tmp_path / "night", state="training", until=0.5)
    log = folder / "train.log"
    log.write_text(f"{stamp(0)}  step 400: paused: the battery is below 20%\n")
    assert RunFolder(folder).view().state == "paused"
    log.write_text(log.read_text() + f"{stamp(0)}  step 400: training continues\n")
    assert RunFolder(folder).view().state == "training"


def test_names_and_sources_are_quoted(tmp_path):
    folder = plant(tmp_path / "my night; rm -rf x", state="stopped", config={"data": ["a b.txt", "$(touch x)"]})
    assert commands(judge(RunFolder(folder).view()))[0] == "tiny-gpt resume 'my night; rm -rf x'"
    folder = plant(tmp_path / "n", kind="too fast", config={"data": ["a b.txt", "$(touch x)"]})
    assert commands(judge(RunFolder(folder).view()))[0].startswith("tiny-gpt train 'a b.txt' '$(touch x)' --new")
