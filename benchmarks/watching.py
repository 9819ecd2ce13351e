"""What watching a run costs: python -m benchmarks.watching

1. The steps of a training with and without an open page, alternating within one run. The page's server is the one that
   `--watch` starts; a program asks it as an open page does. For the steps alone, both are stopped (SIGSTOP). On a host
   shared with others, step times vary by more than a page costs. The benchmark therefore also reports how long the
   training's threads were ready to run and waited for a core (Linux: /proc/PID/task/TID/schedstat), which is the most
   that another process can cost them, apart from caches.
2. A run of 100,000 rows: the first page, and the update after a new row.
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tiny_gpt.cli.watch import TRAINING_VARIABLE
from tiny_gpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from tiny_gpt.host.cpu_time import waited_for_cores_s
from tiny_gpt.run.events import StepDone
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.ui.consumers import RecordedRun
from tiny_gpt.view.live import LiveRun

SEGMENT_S, POLL_S = 5.0, 5.0
# Of a segment, while processes are still being stopped and continued.
SETTLE_S = 0.5
# Segments in which the server starts and reads the training text, once in a run.
N_STARTING = 4
N_ROWS, N_UPDATES = 100_000, 20
ASK = """
import json, sys, time, urllib.parse, urllib.request
version, have = "", {}
while True:
    known = ",".join(f"{name}:{value}" for name, value in have.items())
    query = urllib.parse.urlencode({"axis": "time", "size": "wide", "version": version, "have": known})
    try:
        state = json.load(urllib.request.urlopen(f"{sys.argv[1]}/state?{query}"))
        version = state["version"]
        have |= {name: part["hash"] for name, part in state["parts"].items()}
    except OSError:
        pass  # the server has not started yet
    time.sleep(float(sys.argv[2]))
"""


class OpenPage:
    """The server of `--watch`, and who asks it."""

    def __init__(self, run: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        beside = os.environ | {TRAINING_VARIABLE: str(os.getpid())}
        watch = [sys.executable, "-m", "tiny_gpt", "watch", str(run), "--no-browser", "--port", str(port)]
        self.server = psutil.Popen(watch, env=beside, stdout=subprocess.DEVNULL)
        self.asker = psutil.Popen([sys.executable, "-c", ASK, f"http://127.0.0.1:{port}", str(POLL_S)])

    def is_open(self, value: bool) -> None:
        for process in (self.server, self.asker):
            process.send_signal(signal.SIGCONT if value else signal.SIGSTOP)

    def processor_s(self) -> float:
        """Of the server; who looks may sit at another machine."""
        times = self.server.cpu_times()
        return times.user + times.system

    def close(self) -> None:
        self.is_open(True)
        for process in (self.server, self.asker):
            process.kill()
            process.wait()


@dataclass
class Segment:
    """Some seconds of the training."""

    is_watched: bool
    began: float
    processor_s: float
    """That the page's server had used before, and then within the segment; so too `waited_s`."""
    waited_s: float
    steps: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def end(self, now: float, processor_s: float, waited_s: float) -> None:
        self.seconds = now - self.began
        self.processor_s, self.waited_s = processor_s - self.processor_s, waited_s - self.waited_s


def cost_beside_a_training(folder: Path, seconds: float) -> dict[str, object]:
    """Pairs of segments, one of them watched, in random order: how much longer the watched one's mean step was."""
    segments: list[Segment] = []
    rng, page = random.Random(0), None
    last = end = 0.0
    for event in RecordedRun(_small_run(folder)).train(False, RunRequest()):
        now = time.perf_counter()
        if not isinstance(event, StepDone):
            last = 0.0  # whatever came between two steps is no step
            continue
        page = page or OpenPage(folder / "run")
        end = end or now + seconds
        if now > end:
            break
        if not segments or now - segments[-1].began > SEGMENT_S:
            used = page.processor_s(), waited_for_cores_s()
            if segments:
                segments[-1].end(now, *used)
            is_second = len(segments) % 2 == 1
            is_watched = not segments[-1].is_watched if is_second else rng.random() < 0.5
            page.is_open(is_watched)
            segments.append(Segment(is_watched, now, *used))
            last = now
            continue
        if last and now - segments[-1].began > SETTLE_S:
            segments[-1].steps.append(now - last)
        last = now
    if page is not None:
        page.close()
    return _summary(segments[N_STARTING:-1])


def _small_run(folder: Path) -> RunConfig:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(500)]
    text = folder / "text.txt"
    text.write_text(" ".join(rng.choices(words, k=100_000)))
    # Evaluations are rare, as in a night.
    train = TrainConfig(
        steps=10**7, eval_interval=4000, batch_size=4, backend="eager", device="cpu", out_dir=str(folder / "run")
    )
    model = ModelConfig(n_layer=1, n_head=2, d_model=64, block_size=64)
    return RunConfig(model, DataConfig((str(text),), tokenizer="char"), train)


def _summary(segments: Sequence[Segment]) -> dict[str, object]:
    pairs = [sorted(segments[i : i + 2], key=lambda each: each.is_watched) for i in range(0, len(segments) - 1, 2)]
    pairs = [pair for pair in pairs if min(len(each.steps) for each in pair) >= 5]
    if not pairs:
        return {
            "pairs": 0,
            "reason": "fewer than five steps in a segment: the machine is too busy, or the time too short",
        }
    ratios = sorted(statistics.mean(watched.steps) / statistics.mean(alone.steps) - 1 for alone, watched in pairs)
    alone, watched = ([pair[i] for pair in pairs] for i in range(2))
    return {
        "pairs": len(ratios),
        "step": f"{1000 * statistics.median(statistics.mean(each.steps) for each in alone):.1f} ms",
        "slower by, median": f"{statistics.median(ratios):+.2%}",
        "middle half": f"{ratios[len(ratios) // 4]:+.2%} to {ratios[3 * len(ratios) // 4]:+.2%}",
        "waited for a core, watched": _share(watched, "waited_s"),
        "waited for a core, alone": _share(alone, "waited_s"),
        "processor time of the server, of one core": _share(watched, "processor_s"),
    }


def _share(segments: Sequence[Segment], name: str) -> str:
    return f"{sum(getattr(each, name) for each in segments) / sum(each.seconds for each in segments):.2%}"


def cost_of_many_rows(folder: Path) -> dict[str, object]:
    """Processor time, which other programs on the machine don't change, and time by the clock."""
    path = folder / "metrics.jsonl"
    names = (
        "epoch train_loss val_loss val_bits_per_byte batch_loss lr grad_norm tokens_per_s val_loss_error memory_bytes"
    )
    rng, start = random.Random(0), time.time() - N_ROWS

    def row(step: int) -> str:
        values = {name: 1 + rng.random() for name in names.split()}
        return json.dumps({"step": step, "elapsed_s": float(step), "time": start + step} | values) + "\n"

    path.write_text("".join(map(row, range(1, N_ROWS))))
    marks = [(time.process_time(), time.perf_counter())]
    run = LiveRun(folder)
    run.first_page()
    marks.append((time.process_time(), time.perf_counter()))
    version, have, updates = "", dict[str, str](), []
    for i in range(N_UPDATES + 1):
        with open(path, "a") as file:
            file.write(row(N_ROWS + i))
        before = time.process_time(), time.perf_counter()
        state = run.changes("time", "wide", version, have)
        updates.append((time.process_time() - before[0], time.perf_counter() - before[1]))
        version = str(state["version"])
        have |= {name: part["hash"] for name, part in state["parts"].items()}
    (cpu, clock), (cpu_end, clock_end) = marks
    middle = [statistics.median(times) for times in zip(*updates[1:], strict=True)]
    return {
        "rows": N_ROWS,
        "first page": f"{1000 * (cpu_end - cpu):.0f} ms processor, {1000 * (clock_end - clock):.0f} ms",
        "update": f"{1000 * middle[0]:.0f} ms processor, {1000 * middle[1]:.0f} ms",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--seconds", type=float, default=240.0, help="length of the training (default 240)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(cost_of_many_rows(Path(folder)), indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(cost_beside_a_training(Path(folder), options.seconds), indent=1))


if __name__ == "__main__":
    main()
