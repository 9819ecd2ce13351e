"""Two ranks in network namespaces of their own, joined by a cable of software: slow, losing packets, and unplugged.

Needs root and iproute2, as a container or a virtual machine has them.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.support import Job, evaluations, final_weights, run_config, start_group, train_in_group
from tests.run.support import finish, same_weights
from tiny_gpt.model.shapes import n_parameters
from tiny_gpt.run.folders import newest_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("ip") and shutil.which("tc")),
        reason="network namespaces need root, ip and tc",
    ),
]
ADDRESSES = "10.77.0.1", "10.77.0.2"
TIMEOUT_OF_A_RANK_S = 10.0
# The others have it 10 seconds after the last byte; a busy machine takes longer.
ENDED_WITHIN_S = 45.0
# Large enough that commands and headers hardly count.
LARGE: dict[str, Any] = {"d_model": 128, "d_ff": 512, "n_layer": 2}
EXACT: dict[str, Any] = {"exact": True}


@dataclass(frozen=True)
class Cable:
    """What joins the two namespaces."""

    names: tuple[str, str]

    @property
    def prefixes(self) -> list[list[str]]:
        """What starts a command in each namespace."""
        return [["ip", "netns", "exec", name] for name in self.names]

    def set(self, state: str) -> None:
        """ "up" or "down"."""
        run("ip", "-n", self.names[0], "link", "set", "cable0", state)

    def spoil(self) -> None:
        """Delay and lose packets: at random, or without netem in the kernel, by a queue too short for the traffic."""
        at_random = ["netem", "delay", "5ms", "2ms", "loss", "1%"]
        by_overflow = ["tbf", "rate", "80mbit", "burst", "15kb", "limit", "50kb"]  # a full queue is 5 ms long
        for index, name in enumerate(self.names):
            command = ["tc", "-n", name, "qdisc", "add", "dev", f"cable{index}", "root"]
            if subprocess.run([*command, *at_random], capture_output=True).returncode:
                run(*command, *by_overflow)

    def n_lost(self) -> int:
        """Packets lost at both ends since `spoil`."""
        found = 0
        for index, name in enumerate(self.names):
            shown = run("tc", "-n", name, "-s", "-j", "qdisc", "show", "dev", f"cable{index}", "root")
            found += sum(queue["drops"] for queue in json.loads(shown))
        return found


def run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def cable() -> Iterator[Cable]:
    names = f"tiny-gpt-{os.getpid()}-0", f"tiny-gpt-{os.getpid()}-1"
    try:
        for name in names:
            run("ip", "netns", "add", name)
        ends = ["cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1]]
        try:
            run("ip", "link", "add", *ends)
        except subprocess.CalledProcessError:
            pytest.skip("this kernel has no virtual network cables")
        for index, name in enumerate(names):
            run("ip", "-n", name, "address", "add", f"{ADDRESSES[index]}/24", "dev", f"cable{index}")
            for interface in ("lo", f"cable{index}"):
                run("ip", "-n", name, "link", "set", interface, "up")
        yield Cable(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_namespaces_train_like_one_process_and_send_what_theory_says(cable: Cable, tmp_path: Path) -> None:
    together, alone = (run_config(tmp_path, name, **EXACT) for name in ("together", "alone"))
    large = run_config(tmp_path, "large", LARGE)
    steps = [run_config(tmp_path, f"{epochs} epochs", LARGE, epochs=epochs) for epochs in (1, 3)]
    jobs = [Job(together), *(Job(config) for config in steps)]
    train_in_group(tmp_path / "jobs", 2, jobs, cable.prefixes, ADDRESSES[0])
    finish(alone)
    assert evaluations(together) == evaluations(alone)
    assert same_weights(final_weights(together), final_weights(alone))
    # Each of W ranks sends 2 (W - 1) / W of the gradients and the loss, in fp32.
    vocab_size = final_weights(steps[0])["head.weight"].shape[0]
    expected = 4 * (n_parameters(large.model, vocab_size) + 1)
    for rank in (0, 1):
        _, fewer, more = json.loads((tmp_path / "jobs" / f"sent-{rank}.json").read_text())
        assert 1 <= (more - fewer) / 20 / expected < 1.05  # with commands, agreements and the headers of packets


def test_a_slow_cable_that_loses_packets_changes_nothing(cable: Cable, tmp_path: Path) -> None:
    cable.spoil()
    together, alone = (run_config(tmp_path, name, LARGE, **EXACT) for name in ("together", "alone"))
    train_in_group(tmp_path / "jobs", 2, [Job(together)], cable.prefixes, ADDRESSES[0])
    assert cable.n_lost() > 0
    finish(alone)
    assert evaluations(together) == evaluations(alone)
    assert same_weights(final_weights(together), final_weights(alone))


def test_an_unplugged_cable_ends_both_soon_and_the_run_goes_on(cable: Cable, tmp_path: Path) -> None:
    together, alone = (run_config(tmp_path, name, epochs=20, **EXACT) for name in ("together", "alone"))
    ranks = start_group(tmp_path / "jobs", 2, [Job(together)], cable.prefixes, ADDRESSES[0], TIMEOUT_OF_A_RANK_S)
    try:
        wait_for_step(Path(together.train.out_dir), 15, ranks)
        cable.set("down")
        start = time.monotonic()
        codes = [rank.wait(10 * ENDED_WITHIN_S) for rank in ranks]
        seconds = time.monotonic() - start
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert all(codes) and seconds < ENDED_WITHIN_S, (codes, seconds)
    assert 15 <= newest_step(Path(together.train.out_dir)) < 200
    cable.set("up")
    train_in_group(tmp_path / "jobs", 2, [Job(together, resume=True)], cable.prefixes, ADDRESSES[0])
    finish(alone)
    assert evaluations(together) == evaluations(alone)
    assert same_weights(final_weights(together), final_weights(alone))


def wait_for_step(folder: Path, step: int, ranks: "list[subprocess.Popen[bytes]]") -> None:
    end = time.monotonic() + 300
    while newest_step(folder) < step and time.monotonic() < end and all(rank.poll() is None for rank in ranks):
        time.sleep(0.05)
