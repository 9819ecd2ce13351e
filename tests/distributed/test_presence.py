"""Ranks that work for themselves notice one another: two of them in this process, with a store between them."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from tiny_gpt.distributed import presence
from tiny_gpt.distributed.presence import LostRankError, Presence, kept, meeting_store
from tiny_gpt.host.signals import HeardStop, Stopped, raise_stops

PATIENCE_S = 20.0
Meet = Callable[..., Presence]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meet]:
    """`meet(rank, timeout_s)`: the presence of one of two ranks."""
    monkeypatch.setattr(presence, "SIGN_INTERVAL_S", 0.02)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    made: list[Presence] = []

    def make(rank: int, timeout_s: float = PATIENCE_S, stop: HeardStop | None = None) -> Presence:
        store = meeting_store("127.0.0.1", str(server.port), PATIENCE_S)
        made.append(Presence(store, "test", rank, 2, timeout_s, stop or HeardStop()))
        return made[-1]

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield make
    for each in made:
        with contextlib.suppress(RuntimeError):  # it was never begun
            each.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_each_waits_for_the_others(meet: Meet) -> None:
    first, second = meet(0), meet(1)
    arrived: list[float] = []

    def arrive() -> None:
        time.sleep(0.2)
        arrived.append(time.monotonic())
        second.wait_for_all()

    thread = threading.Thread(target=arrive)
    thread.start()
    first.wait_for_all()
    assert arrived and time.monotonic() >= arrived[0]
    thread.join()


def test_one_that_falls_silent_ends_the_wait(meet: Meet) -> None:
    other = meet(1)
    other.begin()
    time.sleep(0.1)
    other.close()
    with pytest.raises(LostRankError, match="no sign of life") as caught, kept(meet(0, timeout_s=0.3)):
        sleep()
    assert caught.value.code == "rank-silent" and str(caught.value).startswith("rank 1 on")


def test_one_that_never_came_ends_the_wait(meet: Meet) -> None:
    first = meet(0, timeout_s=0.3)
    with pytest.raises(LostRankError, match="rank 1 on another machine"), kept(first):
        first.wait_for_all()


def test_one_that_fails_ends_the_wait_at_once(meet: Meet) -> None:
    other = meet(1)
    with pytest.raises(RuntimeError), kept(other):
        raise RuntimeError
    with pytest.raises(LostRankError, match="ended with an error"), kept(meet(0)):
        sleep()


def test_a_signal_to_another_rank_stops_rank_0(meet: Meet) -> None:
    raise_stops()
    heard = HeardStop()
    heard.number = signal.SIGTERM
    with kept(meet(1, stop=heard)), pytest.raises(Stopped) as caught, kept(meet(0)):
        sleep()
    assert caught.value.signal_number == signal.SIGTERM


def test_the_others_end_quietly_where_rank_0_was_stopped(meet: Meet) -> None:
    leader, stop = meet(0), HeardStop()
    stop.listen()
    other = meet(1, stop=stop)
    thread = threading.Thread(target=leader.end, args=(presence.STOPPED,))
    with pytest.raises(Stopped), kept(other):
        thread.start()
        sleep()
    thread.join()
    assert other.leader_has_ended


STORE = """
import time
import torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows stops no process")
def test_a_store_that_is_stopped_ends_every_wait() -> None:
    """It is in the process of rank 0 unless torchrun has started the ranks. torch would wait for it without end."""
    with subprocess.Popen([sys.executable, "-c", STORE], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            port = process.stdout.readline().strip()
            second = Presence(meeting_store("127.0.0.1", port, PATIENCE_S), "test", 1, 2, 0.5, HeardStop())
            process.send_signal(signal.SIGSTOP)
            start = time.monotonic()
            with pytest.raises(LostRankError) as caught, kept(second):
                second.wait_for_all()
            second.close()
            assert caught.value.code == "rank-silent"
            with pytest.raises(LostRankError) as caught:
                meeting_store("127.0.0.1", port, 0.5)
            assert caught.value.code == "meeting-silent" and time.monotonic() - start < PATIENCE_S
        finally:
            process.kill()


def test_in_training_nobody_is_interrupted(meet: Meet) -> None:
    first, second = meet(0, timeout_s=0.1), meet(1)
    thread = threading.Thread(target=second.wait_for_all)
    thread.start()
    with kept(first):
        first.wait_for_all()
        thread.join()  # and is silent from here on
        time.sleep(0.5)
    assert "rank 1" not in first.silent_ranks()  # it takes longer until that is worth a word


def sleep() -> None:
    """Until this thread is interrupted."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        time.sleep(0.01)
    pytest.fail("it was not interrupted")
