"""`tiny-gpt doctor --nodes`: whether processes can train together, and how fast the network between them is.

Started by torchrun on every machine, as a training is. Without torchrun it starts two processes on this machine.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tiny_gpt import __version__
from tiny_gpt.cli.devices import torchrun_command
from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.host.torchrun import rank_in_environment
from tiny_gpt.ui.terminal import error

if TYPE_CHECKING:
    from tiny_gpt.distributed.ranks import Ranks

# Ranks that don't answer for this long are lost.
MEETING_S = 60.0
# Clocks that differ by more are reported: logs would not fit together. Nothing else depends on them.
MAX_CLOCK_DIFFERENCE_S = 2.0
# What must be the same on all ranks, or the results are not.
SAME = {
    "tiny_gpt": "version of tiny_gpt",
    "torch": "version of torch",
    "device": "device",
    "threads": "number of threads",
    "text_sha256": "text",
}


def examine_nodes(sources: Sequence[str], as_json: bool) -> int:
    """Check the processes that torchrun has started. Returns the exit code: 1 if they should not train together."""
    if rank_in_environment() is None:
        return _start_here()
    import torch

    from tiny_gpt.distributed.presence import LostRankError
    from tiny_gpt.distributed.ranks import join_group, leave

    try:
        ranks = join_group("auto" if torch.cuda.is_available() else "cpu", MEETING_S)
        report = examine_ranks(ranks, sources)
    except LostRankError as failure:
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "?")
        raise OutOfResourcesError(
            f"{failure}.\nThe processes meet at {meeting_place()}, over the interface {interface}"
            f" of {socket.gethostname()}. Check that this port is open between the machines, or name another interface "
            "in GLOO_SOCKET_IFNAME",
            code="nodes-unreachable",
        ) from failure
    finally:
        leave()
    if rank_in_environment() == 0:
        print(json.dumps(report, indent=2) if as_json else report_text(report), flush=True)
    return 1 if report["problems"] else 0


def examine_ranks(ranks: "Ranks", sources: Sequence[str]) -> dict[str, Any]:
    """What `report_text` shows; called by all `ranks`. Raises LostRankError."""
    import torch

    from tiny_gpt.distributed.network import measure_network

    with ranks.present():
        facts = facts_of_this_rank(ranks.rank, sources)
        ranks.gather("", after_preparation=True)  # all arrive before the clocks are read
    everything = ranks.gather(facts | {"clock": time.time()})
    speed = measure_network(ranks.size, ranks.add, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return {
        "place": meeting_place(),
        "ranks": everything,
        "network": {"latency_s": speed.small_sum_s, "bytes_per_s": speed.bytes_per_s},
        "problems": differences(everything),
    }


def meeting_place() -> str:
    """Where the processes find one another."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _start_here() -> int:
    """Check two processes of this machine, or one for each of its GPUs."""
    import torch

    n_processes = max(2, torch.cuda.device_count())
    command = torchrun_command([sys.executable, "-m", "tiny_gpt", "doctor", *sys.argv[2:]], n_processes)
    error(f"starting {n_processes} processes on this machine; on several, start this with torchrun on each of them")
    return subprocess.run(command, env={"OMP_NUM_THREADS": "1"} | os.environ).returncode


def facts_of_this_rank(rank: int, sources: Sequence[str]) -> dict[str, Any]:
    """What is compared, in plain JSON types."""
    import torch

    from tiny_gpt.device import describe_device
    from tiny_gpt.distributed.network import own_address
    from tiny_gpt.host.torchrun import local_rank

    device = torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "address": own_address(os.environ.get("MASTER_ADDR", "")),
        "interface": os.environ.get("GLOO_SOCKET_IFNAME", ""),
        "tiny_gpt": __version__,
        "torch": torch.__version__,
        "device": name,
        "describes": describe_device(device),
        "threads": torch.get_num_threads(),
        "text_sha256": text_sha256(sources),
    }


def text_sha256(sources: Sequence[str]) -> str:
    """The hash of the text as this machine sees it, or why it cannot be read; "" without sources."""
    from tiny_gpt.data.progress import finish
    from tiny_gpt.data.sources.files import content_hash
    from tiny_gpt.data.sources.resolve import resolve
    from tiny_gpt.data.token_shards.opened import sole_corpus
    from tiny_gpt.data.token_shards.places import read_index
    from tiny_gpt.errors import BadInputError

    if not sources:
        return ""
    try:
        if location := sole_corpus(tuple(sources)):
            return finish(read_index(location)).sha256
        return str(finish(content_hash(finish(resolve(sources)).files)))
    except BadInputError as failure:
        return f"unreadable: {failure}"


def differences(everything: list[dict[str, Any]]) -> list[str]:
    """What should be the same on all ranks and is not, one line each."""
    lines = []
    for key, label in SAME.items():
        values: dict[str, list[str]] = {}
        for facts in everything:
            values.setdefault(str(facts[key]), []).append(f"rank {facts['rank']} on {facts['host']}")
        if len(values) > 1:
            found = "; ".join(f"{value or 'none'} ({', '.join(where)})" for value, where in values.items())
            lines.append(f"another {label}: {found}")
    lines += [
        f"rank {facts['rank']} on {facts['host']}: {text}" for facts in everything if (text := _unreadable(facts))
    ]
    clocks = [facts["clock"] for facts in everything]
    if (apart_s := max(clocks) - min(clocks)) > MAX_CLOCK_DIFFERENCE_S:
        lines.append(f"clocks differ by {apart_s:.0f} s")
    return lines


def _unreadable(facts: dict[str, Any]) -> str:
    text = str(facts["text_sha256"])
    return text if text.startswith("unreadable") else ""


def report_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = [f"{len(report['ranks'])} processes have met at {report['place']}"]
    for facts in report["ranks"]:
        text = f", text {facts['text_sha256'][:12]}" if facts["text_sha256"] else ""
        lines.append(
            f"  rank {facts['rank']}: {facts['host']}, {facts['address']} ({facts['interface']}), "
            f"{facts['describes']}, torch {facts['torch']}{text}"
        )
    latency_s, bytes_per_s = report["network"]["latency_s"], report["network"]["bytes_per_s"]
    lines.append(
        f"A sum over all takes {1e3 * latency_s:.2f} ms, and {bytes_per_s / 1e9:.2f} GB/s are sent in a large one."
    )
    weights = bytes_per_s * len(report["ranks"]) / (8 * (len(report["ranks"]) - 1))
    lines.append(f"So the gradients of {weights / 1e6:.0f} million weights take a second.")
    lines += [f"Problem: {problem}" for problem in report["problems"]]
    return "\n".join(
        [*lines, "They can train together." if not report["problems"] else "They should not train together."]
    )
