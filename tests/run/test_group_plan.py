"""The plan of a run on several devices, without starting any."""

import pytest

from tests.planning.test_several_devices import CONFIG, CPU, FAST, ONE
from tiny_gpt.distributed.network import NetworkSpeed
from tiny_gpt.distributed.ranks import Ranks
from tiny_gpt.host.torchrun import CORES_VARIABLE
from tiny_gpt.planning.planner import Planner
from tiny_gpt.planning.several_devices import Network
from tiny_gpt.planning.types import Candidate, TextStats
from tiny_gpt.run import group_plan
from tiny_gpt.run.group_plan import on_ranks

PLANNER = Planner(TextStats(10**8, 10**7, 10**6, 256, 2.0), CPU, ONE, Candidate("eager", "fp32"))


@pytest.fixture
def four_ranks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_plan, "current_ranks", lambda: Ranks(0, 4))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")


@pytest.mark.usefixtures("four_ranks_here")
def test_processes_that_share_cores_are_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CORES_VARIABLE, "4")
    assert on_ranks(PLANNER, FAST).step_time(CONFIG) == pytest.approx(ONE(CONFIG), rel=1e-3)


@pytest.mark.usefixtures("four_ranks_here")
def test_processes_with_threads_of_their_own_divide_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CORES_VARIABLE, raising=False)
    assert on_ranks(PLANNER, FAST).step_time(CONFIG) == pytest.approx(ONE(CONFIG) / 4, rel=1e-3)


@pytest.mark.usefixtures("four_ranks_here")
def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = PLANNER.on_devices(4, FAST)
    needed = elsewhere.plan(CONFIG)[1].memory_bytes
    monkeypatch.setattr("tiny_gpt.planning.stage_planner.available_memory_bytes", lambda _: 3 * needed)
    assert not elsewhere.plan(CONFIG)[0].train.recompute
    assert on_ranks(PLANNER, FAST).plan(CONFIG)[0].train.recompute


def test_the_time_of_a_small_sum_is_that_of_its_messages() -> None:
    network = Network.measured(NetworkSpeed(small_sum_s=6e-4, bytes_per_s=1e9), 4)
    assert network.is_measured and network == pytest.approx((1e9, 1e-4, True))
