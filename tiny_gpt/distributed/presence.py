"""Which ranks of a run are alive and which were asked to stop, while each of them works for itself.

Before the first step every rank prepares the text alone, perhaps for an hour, and sends nothing that would show that
another one is gone. So a thread of each rank writes a record into the store of torch.distributed once a second, and
reads those of the others. It interrupts the main thread, as Ctrl+C does, where the preparation has become pointless: a
rank is lost, or was asked to stop. In training, the messages of a step show the same (ranks.py), and the records say
which rank it was.
"""

import _thread
import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from tiny_gpt.errors import TinyGPTError
from tiny_gpt.host.signals import HeardStop

# torch.distributed.Store, which torch does not export where a type checker looks.
Store = Any
Answer = TypeVar("Answer")
# Seconds between two records, and between two looks at the others' while this rank waits for them.
SIGN_INTERVAL_S, ARRIVAL_INTERVAL_S = 1.0, 0.05
# A preparation that takes longer is over.
MAX_PREPARATION_S = 2 * 3600.0
# A rank that ends early waits so long until the others know why.
HEARD_S = 5.0
# Silence that is worth a word where a message has failed.
NOTED_SILENCE_S = 5.0
# How many of its own timeouts torch may take until it counts as stuck.
PATIENCE = 1.5
# What a rank says last: its run is over, it was asked to stop, it has lost another rank, or something else went wrong.
FINISHED, STOPPED, LOST, FAILED = "finished", "stopped", "lost", "failed"


class LostRankError(TinyGPTError):
    """Another process of the run has ended or does not answer. The training can be restarted from its checkpoint."""


@dataclass
class Record:
    """What a rank says about itself."""

    host: str = ""
    n_beats: int = 0
    stop_signal: int = 0
    """The signal that asks it to stop; 0 for none."""
    n_arrivals: int = 0
    """How many times it has called `wait_for_all`."""
    end: str = ""
    """How its run has ended; "" while it goes on."""
    has_heard_end: bool = False
    """Whether it knows that rank 0 has ended."""


class Presence:
    """This rank among those of a run, from the run's beginning to its end."""

    def __init__(self, store: Store, prefix: str, rank: int, size: int, timeout_s: float, stop: HeardStop) -> None:
        """The records are in `store`, under names that begin with `prefix`."""
        self._store, self._prefix, self._rank, self._timeout_s, self._stop = store, prefix, rank, timeout_s, stop
        self._own = Record(socket.gethostname())
        self._others = {other: Record() for other in range(size) if other != rank}
        self._changed_at = dict.fromkeys(self._others, time.monotonic())
        self._known: set[int] = set()
        self._exchanging, self._closing, self._ends = threading.RLock(), threading.Lock(), threading.Event()
        self._is_preparing, self._is_closed, self._is_stuck = True, False, False
        self.loss: LostRankError | None = None
        """Why the preparation cannot go on."""
        self._thread = threading.Thread(target=self._watch, daemon=True, name="presence of other ranks")

    def begin(self) -> None:
        self._thread.start()

    def wait_for_all(self) -> None:
        """Wait until every rank has come here, as long as all live. Raises LostRankError."""
        end = time.monotonic() + MAX_PREPARATION_S
        self._own.n_arrivals += 1
        while True:
            self._exchange_or_lose()
            if self.loss:
                raise self.loss
            late = [rank for rank, record in self._others.items() if record.n_arrivals < self._own.n_arrivals]
            if not late:
                self._is_preparing = False
                return
            if time.monotonic() > end:
                raise LostRankError(
                    f"{self._names(late)}: the text is not prepared there after {MAX_PREPARATION_S / 3600:.0f} hours",
                    code="rank-prepares-too-long",
                )
            time.sleep(ARRIVAL_INTERVAL_S)

    def end(self, how: str) -> None:
        """Tell the others that this rank's run is over; a rank 0 that ends early waits until they know, unless one of
        them is lost."""
        with self._closing:
            if self._own.end:
                return
            self._own.end = how
        self._is_preparing = False
        end = time.monotonic() + HEARD_S
        while (
            self._exchanged_within(HEARD_S) and how in (STOPPED, FAILED) and self._rank == 0 and time.monotonic() < end
        ):
            if all(record.has_heard_end or record.end for record in self._others.values()):
                return
            time.sleep(ARRIVAL_INTERVAL_S)

    def close(self) -> None:
        """End the thread; from here on it interrupts nobody."""
        with self._closing:
            self._is_closed = True
        self._ends.set()
        self._thread.join(SIGN_INTERVAL_S)  # it may wait for a store that is gone

    @property
    def leader_has_ended(self) -> bool:
        """Whether rank 0 has ended the run, and says why itself."""
        return self._rank > 0 and self._others[0].end not in ("", LOST)

    def silent_ranks(self) -> str:
        """The other ranks that have given no sign of life for a while; "" where there are none."""
        now = time.monotonic()
        return self._names(
            [rank for rank, changed_at in self._changed_at.items() if now - changed_at > NOTED_SILENCE_S]
        )

    # --- the thread ---

    def _watch(self) -> None:
        while not self._ends.wait(SIGN_INTERVAL_S):
            self._exchange_or_lose()
            if self._is_preparing:
                self._look_for_trouble()
            if self.leader_has_ended and not self._own.has_heard_end:
                self._own.has_heard_end = True
                self._exchanged_within(HEARD_S)
                if self._others[0].end != FINISHED:  # which comes as a command
                    self._interrupt(signal.SIGINT)

    def _look_for_trouble(self) -> None:
        now, ended = time.monotonic(), [rank for rank in self._others if self._others[rank].end in (LOST, FAILED)]
        silent = [rank for rank, changed_at in self._changed_at.items() if now - changed_at > self._timeout_s]
        if ended and not self.leader_has_ended:
            self._lose(f"{self._names(ended)} has ended with an error")
        elif silent and not self.leader_has_ended:
            words = f"has given no sign of life for {self._timeout_s:.0f} s"
            self._lose(f"{self._names(silent)} {words}: it hangs or was killed, or the network is gone")
        asked = [record.stop_signal for record in self._others.values() if record.stop_signal]
        if asked and self._rank == 0:
            self._interrupt(asked[0])

    def _exchange_or_lose(self) -> None:
        """Write this rank's record and read the others'. Notes a loss where the store is gone.

        It ends with the process that has it, perhaps a moment before this rank hears that the run is over.
        """
        heard = self._exchanged_within(self._timeout_s)
        if not heard and not self._ends.wait(SIGN_INTERVAL_S) and not self._exchanged_within(self._timeout_s):
            self._lose("the process where all ranks meet has ended or does not answer")

    def _exchanged_within(self, timeout_s: float) -> bool:
        """Whether the records are exchanged, or need not be any more."""
        if not self._exchanging.acquire(timeout=timeout_s):
            return self.leader_has_ended
        try:
            if self._is_stuck:  # TCP goes on trying for hours, and later messages wait for the one that is stuck
                return self.leader_has_ended
            answered_within(timeout_s, self._exchange)
        except LostRankError:
            self._is_stuck = True
            return self.leader_has_ended
        except (RuntimeError, ValueError):
            return self.leader_has_ended
        finally:
            self._exchanging.release()
        return True

    def _exchange(self) -> None:
        self._own.n_beats += 1
        self._own.stop_signal = self._stop.number
        self._store.set(self._name(self._rank), json.dumps(asdict(self._own)))
        self._known |= {rank for rank in self._others if rank not in self._known and self._is_there(rank)}
        ranks = sorted(self._known)
        texts = self._store.multi_get([self._name(rank) for rank in ranks]) if ranks else []
        for rank, text in zip(ranks, texts, strict=True):
            record = Record(**json.loads(text))
            if record != self._others[rank]:
                self._others[rank], self._changed_at[rank] = record, time.monotonic()

    def _is_there(self, rank: int) -> bool:
        return bool(self._store.check([self._name(rank)]))

    def _name(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _lose(self, what: str) -> None:
        if self._is_preparing and self.loss is None:
            self.loss = LostRankError(what, code="rank-silent")
            self._interrupt(signal.SIGINT)

    def _interrupt(self, number: int) -> None:
        """From the thread: have the main thread's handler of this signal called."""
        with self._closing:
            if not (self._is_closed or self._own.end) and threading.current_thread() is self._thread:
                self._stop.is_over = True
                _thread.interrupt_main(signal.Signals(number))

    def _names(self, ranks: list[int]) -> str:
        """rank 1 on node7, rank 2 on node7"""
        return ", ".join(f"rank {rank} on {self._others[rank].host or 'another machine'}" for rank in ranks)


def meeting_store(address: str, port: str, timeout_s: float) -> Store:
    """A connection of its own to the store where the ranks have met. Raises LostRankError where it does not answer."""
    return answered_within(
        timeout_s,
        lambda: dist.TCPStore(  # type: ignore[attr-defined]
            address, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        ),
    )


def answered_within(timeout_s: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns, or raises; LostRankError if that takes far longer than `timeout_s`.

    torch has its own timeouts, whose errors are more specific. But if the process of the store is stopped (SIGSTOP),
    torch can block forever: after its timeout it cancels the request and waits for the store to confirm. So a thread
    asks, and is abandoned if it is stuck.
    """
    answer: Future[Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as failure:
            answer.set_exception(failure)
        finally:
            _asking.discard(threading.current_thread())

    thread = threading.Thread(target=work, daemon=True, name="meeting other ranks")
    _asking.add(thread)
    thread.start()
    try:
        return answer.result(PATIENCE * timeout_s)
    except TimeoutError:
        raise LostRankError("the process where all ranks meet does not answer", code="meeting-silent") from None


_asking: set[threading.Thread] = set()


@atexit.register
def _leave_behind() -> None:
    """Exit now if a thread is stuck in torch: when the interpreter shuts down, C++ code in that thread would abort."""
    end = time.monotonic() + SIGN_INTERVAL_S
    for thread in list(_asking):
        thread.join(max(0.0, end - time.monotonic()))
    if _asking:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(LostRankError.exit_code)


@contextlib.contextmanager
def kept(presence: Presence) -> Iterator[None]:
    """`presence` while a run lasts. An interruption by its thread becomes the error that it has found."""
    presence.begin()
    how = FAILED
    try:
        yield
        how = FINISHED
    except KeyboardInterrupt:
        how = LOST if presence.loss else STOPPED
        if presence.loss:
            raise presence.loss from None
        raise
    except LostRankError as failure:
        how = LOST
        if presence.loss is None and (names := presence.silent_ranks()):
            raise LostRankError(f"{failure}: {names}", code="rank-lost-silent") from failure
        raise
    finally:
        presence.end(how)
        presence.close()
