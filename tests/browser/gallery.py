"""Screenshots of the run page in its states, to be looked at.

    python -m tests.browser.gallery TEXT_FILE FOLDER [STATE ...]

The runs are planted ones with a text of your choice, so that lines of reference and copied passages are real.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from tests.browser.support import CHROMIUM_FLAGS, Opened, chromium_path
from tests.view.support import FACTS, PLAN, plant, stamp, write_rows, write_state
from tiny_gpt.cli.main import main as tiny_gpt
from tiny_gpt.config import DataConfig
from tiny_gpt.data.copied_spans import decoded_text
from tiny_gpt.data.prepare import Dataset, prepare
from tiny_gpt.planning.types import Forecast
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.status import read_status
from tiny_gpt.view.report import write_report

HOURS = 6 * 3600.0
NIGHT_PLAN = replace(
    PLAN, steps=40_000, step_s=0.54, tokens=40_000 * 512, seconds=HOURS, forecast=Forecast(1.43, 1.34, 1.53)
)
STEP = 500
# What a model writes while it learns; the last lines are followed by a passage of the text.
WRITTEN = (
    "\nt eoh srn atl, e dwe\nn thi  oesr hmo ia nytut s,\n\n d aeo nhreti  s",
    "\nThe the and wour ther sore the hathe mand\nAnd the the songer and the win:\nI hat the be of the seard",
    "\nROMEO:\nThe some the would to the stand the have\nThat the comes and the love the strange\nOf the with her",
    "\nKING RICHARD:\nWhat shall I see the sun of all the world,\nAnd make the father of my lord with him?",
    "\nKING RICHARD:\nI have a brother to the king, my lord,\nAnd he that loves me shall not see the day.\n\nDUKE:\n",
    "\nKING RICHARD:\nThen let us go, and bear the news to court:\nThe queen is dead, and all her sorrows end.\n\n",
)
SIZES = {"desktop": dict(width=1440, height=900), "phone": dict(width=390, height=844)}


def store_text(path: Path) -> Dataset:
    """The text in the cache, where a run's checkpoint finds it."""
    preparation = prepare(DataConfig((str(path),), tokenizer="char"), block_size=64)
    while True:
        try:
            next(preparation)
        except StopIteration as done:
            return done.value


def plant_night(folder: Path, dataset: Dataset, n_samples: int = 6, **options) -> Path:
    """A run of six hours on the text of `dataset`."""
    text = decoded_text(dataset.tokenizer, dataset.train)[40_000:40_140].decode("utf-8", "ignore")
    written = list(WRITTEN[: n_samples - 1]) + [WRITTEN[-1] + text] * (n_samples == len(WRITTEN))
    until = options.get("until", 1.0)
    n = options.get("n", 80)
    at = {
        max(1, round(n * (i + 1) ** 2 / len(WRITTEN) ** 2)) * options.get("step", STEP): i for i in range(len(written))
    }
    options = dict(plan=NIGHT_PLAN, seconds=HOURS, step=STEP, n=n) | options
    planted = plant(folder, samples={step: "The night" + written[i] for step, i in at.items()}, **options)
    index = planted / "samples/index.jsonl"
    found = [json.loads(line) for line in (planted / "metrics.jsonl").read_text().splitlines()]
    by_step = {row["step"]: row for row in found}
    lines = []
    for line in index.read_text().splitlines() if index.exists() else []:
        row = json.loads(line)
        evaluated = by_step.get(row["step"], found[-1])
        row |= {name: evaluated[name] for name in ("elapsed_s", "time", "val_loss", "val_bits_per_byte")}
        lines.append(json.dumps(row) + "\n")
    index.write_text("".join(lines))
    about = {"data": dataset.identity, "machine": {"torch": "2.13.0", "python": "3.12", "cpu": "AMD EPYC"}}
    CheckpointStore(planted).write(7, {"x.bin": lambda sink: sink.write(b"1")}, about)
    status = read_status(planted / "status.json")
    facts = FACTS | {"train_tokens": len(dataset.train), "sources": ["tinyshakespeare"]}
    left_s = HOURS * (1 - until) if options.get("state") == "training" else None
    write_state(planted, status, facts=facts, left_s=left_s, progress=until)
    return planted


def _beginning(root: Path, dataset: Dataset) -> Path:
    return plant_night(root / "my_book", dataset, 2, state="training", until=0.02, n=2)


def _middle(root: Path, dataset: Dataset) -> Path:
    log = [
        f"{stamp(-7000)}  step 9,500: skipped a step up to step 9,500: loss or gradient NaN",
        f"{stamp(-4000)}  step 14,200: paused: battery at 19%; training resumes when it is plugged in or above 25%",
        f"{stamp(-3500)}  step 14,200: training continues",
        f"{stamp(-1000)}  step 17,900: the training process ended (killed by SIGKILL); it was restarted",
    ]
    folder = plant_night(root / "my_book", dataset, 5, state="training", until=0.45, n=40, kind="good")
    (folder / "train.log").write_text("\n".join(log) + "\n")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [row | {"time": row["time"] - 3600 * (i < 20)} for i, row in enumerate(found)]  # it slept for an hour
    write_rows(folder, found)
    return folder


def _finished(root: Path, dataset: Dataset) -> Path:
    return plant_night(root / "my_book", dataset, 6)


def _overfitted(root: Path, dataset: Dataset) -> Path:
    return plant_night(root / "my_book", dataset, 6, kind="overfitted")


def _diverged(root: Path, dataset: Dataset) -> Path:
    folder = plant_night(root / "my_book", dataset, 4, kind="diverged", state="failed", until=0.9)
    (folder / "train.log").write_text(
        f"{stamp(-900)}  step 30,100: skipped 20 steps up to step 30,100: loss or gradient NaN\n"
        f"{stamp(-600)}  step 30,100: rolled back to the checkpoint of step 28,000\n"
    )
    error = (
        "training diverged at step 36,000: the loss is NaN again after two rollbacks.\nGive a lower --learning-rate."
    )
    write_state(folder, read_status(folder / "status.json"), error=error, error_code="training-diverged")
    return folder


def _many_rows(root: Path, dataset: Dataset) -> Path:
    return plant_night(root / "my_book", dataset, 6, n=100_000, step=1, state="training", until=0.7)


def _died(root: Path, dataset: Dataset) -> Path:
    folder = plant_night(root / "my_book", dataset, 4, state="training", until=0.5)
    write_state(folder, read_status(folder / "status.json"), process_id=2**22 - 3, updated=time.time() - 9000)
    return folder


def _comparison(root: Path, dataset: Dataset) -> Path:
    first = plant_night(root / "my_book", dataset, 6)
    second = plant_night(root / "my_book-2", dataset, 6, kind="small text", config={"learning_rate": 1e-3}, seed=1)
    third = plant_night(root / "shorter", dataset, 4, until=0.5, state="stopped", n=40, config={"batch_size": 16})
    tiny_gpt(["runs", "compare", str(first), str(second), str(third), "--html", str(root / "compare.html")])
    return root / "compare.html"


STATES = {
    "beginning": _beginning,
    "middle": _middle,
    "finished": _finished,
    "overfitted": _overfitted,
    "diverged": _diverged,
    "many_rows": _many_rows,
    "died": _died,
    "comparison": _comparison,
}


def main(text: str, folder: str, *states: str) -> None:
    """Write STATE-SIZE-SCHEME.png, the whole page, for each state."""
    import shutil

    from playwright.sync_api import sync_playwright

    dataset, target = store_text(Path(text)), Path(folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=CHROMIUM_FLAGS)
        for state in states or STATES:
            shutil.rmtree(target / state, ignore_errors=True)
            made = STATES[state](target / state, dataset)
            page = made if made.suffix == ".html" else write_report(made)
            for size, viewport in SIZES.items():
                for scheme in ("light", "dark"):
                    opened = Opened(browser, page, **viewport, dark=scheme == "dark", javascript=True, options={})
                    opened.page.screenshot(path=target / f"{state}-{size}-{scheme}.png", full_page=True)
                    problems = opened.close()
                    print(state, size, scheme, *problems)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
