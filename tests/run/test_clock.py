"""Where the time of a run goes, on a clock that tests set."""

import pytest
import torch

from tiny_gpt.run import clock
from tiny_gpt.run.clock import MAX_OVERHEAD, MEASURED_S, N_WARMUP_STEPS, RunClock, Throttle

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch):
    """A list with the time; add to it to let time pass."""
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    return now


def test_time_is_counted_by_activity_and_the_rest_is_training(now):
    found = RunClock()
    now[0] += 5
    for activity, seconds in (("eval", 1), ("save", 2), ("pause", 3), ("eval", 1)):
        with found.count_as(activity):
            now[0] += seconds
    assert (found.eval_s, found.save_s, found.pause_s, found.train_s, found.elapsed_s) == (2, 2, 3, 5, 12)


def test_a_resumed_clock_continues_its_count(now):
    found = RunClock()
    now[0] += 50  # loading the checkpoint
    found.resume(step=7, train_s=10.0, eval_s=1.0, save_s=2.0, pause_s=3.0)
    now[0] += 4
    assert (found.train_s, found.elapsed_s) == (14, 20)
    assert found.lap(9) == (2, 4, 0)


def test_laps_leave_evaluations_out(now):
    found = RunClock()
    found.start_lap(0)
    now[0] += 6
    with found.count_as("eval"):
        now[0] += 100
    assert found.lap(3) == (3, 6, 0)
    now[0] += 1
    assert found.lap(4) == (1, 1, 0)


def test_a_step_is_measured_once_after_the_warmup(now):
    found, seconds = RunClock(), []
    for step in range(1, 20):
        now[0] += 10 if step <= N_WARMUP_STEPS else MEASURED_S / 4
        seconds.append(found.measure_step_once(CPU))
    assert [s for s in seconds if s is not None] == [pytest.approx(MEASURED_S / 4)]


def test_a_rollback_begins_the_measurement_of_a_step_anew(now):
    found, seconds = RunClock(), []
    for n_done in range(1, 20):
        now[0] += 10 if n_done <= N_WARMUP_STEPS + 1 else MEASURED_S / 4
        if n_done == N_WARMUP_STEPS + 1:
            found.roll_back(step=0)
        seconds.append(found.measure_step_once(CPU))
    assert [s for s in seconds if s is not None] == [pytest.approx(MEASURED_S / 4)]


def test_a_throttle_limits_the_share_of_the_time(now):
    throttle = Throttle()
    assert throttle.allows()
    with throttle.measure():
        now[0] += 2
    now[0] += 2 / MAX_OVERHEAD - 1
    assert not throttle.allows()
    now[0] += 1
    assert throttle.allows() and not throttle.allows(interval_s=1000)
