"""The pilot run, and which texts get BPE tokens."""

import random

from tests.planning.support import CPU
from tiny_gpt.config import DataConfig
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import finish
from tiny_gpt.planning.pilot_run import run_pilot


def test_the_pilot_run_is_repeatable_and_ranks_texts(tmp_path):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=5)) for _ in range(2000)]
    texts = {"easy": "to be or not to be. " * 600, "hard": " ".join(words)}
    bits = {}
    for name, content in texts.items():
        (tmp_path / name).write_text(content)
        dataset = finish(prepare(DataConfig((str(tmp_path / name),)), 16))
        bits[name] = [run_pilot(dataset, CPU, "eager", "fp32").pilot_bits_per_byte for _ in range(2)]
        assert bits[name][0] == bits[name][1]
    assert bits["easy"][0] < 1 < 2.5 < bits["hard"][0] < 5
