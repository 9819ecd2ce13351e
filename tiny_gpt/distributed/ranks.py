"""The processes of a run, called ranks as in torch.distributed, and how they communicate.

Rank 0 leads: it decides what happens next and tells the others (run/leader.py, run/follower.py). Commands are JSON and
travel between CPUs over gloo; tensors travel over gloo on CPUs and over NCCL on NVIDIA GPUs.

A process that was not started by torchrun is alone: a group of one, in which nothing is sent.
"""

import atexit
import contextlib
import datetime
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from tiny_gpt.device import is_out_of_memory
from tiny_gpt.distributed.network import choose_interface, wait_for_port
from tiny_gpt.distributed.presence import (
    FINISHED,
    HEARD_S,
    LostRankError,
    Presence,
    answered_within,
    kept,
    meeting_store,
)
from tiny_gpt.errors import UsageError, first_line
from tiny_gpt.host.signals import HeardStop
from tiny_gpt.host.torchrun import local_rank, rank_in_environment, restart_count

# A command up to this many bytes takes one message.
MESSAGE_BYTES = 512
LENGTH_BYTES = 8
# While rank 0 has no work for the other ranks, a thread of it sends them WAIT, this many times in a rank's timeout.
WAITS_PER_TIMEOUT, MAX_WAIT_INTERVAL_S = 4, 60.0
# The command that ends the other ranks, and the one that does nothing.
FINISH, WAIT = "finish", "wait"


class SharedOutOfMemoryError(torch.OutOfMemoryError):
    """Memory ran out on some rank, so that all repeat their work in smaller parts."""


class Ranks:
    """The processes of a run as one of them sees them."""

    def __init__(self, rank: int = 0, size: int = 1, prompt: Any = None, timeout_s: float = 0.0) -> None:
        """`prompt` is a gloo process group with the timeout `timeout_s`; unused with one rank."""
        self.rank, self.size, self._prompt, self._timeout_s = rank, size, prompt, timeout_s
        self._presence: Presence | None = None
        self._n_runs = 0
        self._wait_interval_s = min(MAX_WAIT_INTERVAL_S, timeout_s / WAITS_PER_TIMEOUT)
        self._sending = threading.Lock()
        self._loss: LostRankError | None = None
        """What the thread that sends WAIT has found."""
        self.stop = HeardStop()
        """Signals that ask this process to stop."""
        self.stop_signal_of_all = 0
        """The same of any rank, as of the last `agree`."""
        self.are_waiting = False
        """On rank 0: whether the other ranks wait for a command."""

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def takes(self, index: int) -> bool:
        """Whether this rank computes the piece of work with this index; pieces are assigned round-robin."""
        return index % self.size == self.rank

    # --- presence ---

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """Around a run, on all ranks: each knows whether the others live, also while all of them prepare.

        Raises LostRankError in the block where one of them is lost before `gather` has been called with
        `after_preparation`, and Stopped on rank 0 where one was asked to stop before.
        """
        if self.is_alone:
            yield
            return
        self._n_runs += 1
        prefix = f"tiny_gpt/{restart_count()}/{self._n_runs}"
        with _lost_ranks_raised():
            store = meeting_store(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], self._timeout_s)
        self._presence = Presence(store, prefix, self.rank, self.size, self._timeout_s, self.stop)
        with kept(self._presence):
            yield

    @property
    def leader_has_ended(self) -> bool:
        """Whether rank 0 has ended the run, and says why itself."""
        return self._presence is not None and self._presence.leader_has_ended

    @property
    def has_lost_one(self) -> bool:
        """Whether another rank was found to be lost while all were preparing."""
        return self._presence is not None and self._presence.loss is not None

    def take_leave(self) -> None:
        """On rank 0, while the others wait for a command: end what all have in common; this rank goes on alone."""
        if self._presence:
            self._presence.end(FINISHED)
        self.send({"do": FINISH})

    # --- tensors: all ranks call these in the same order ---

    def add(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` by its sum over all ranks; the same bits on each."""
        if not self.is_alone:
            with _lost_ranks_raised():
                dist.all_reduce(tensor)

    def add_later(self, tensor: torch.Tensor) -> Any:
        """`add` in the background. Returns a handle to `wait` for."""
        with _lost_ranks_raised():
            return dist.all_reduce(tensor, async_op=True)

    def wait(self, handle: Any) -> None:
        """Wait until a sum that `add_later` started is complete."""
        with _lost_ranks_raised():
            handle.wait()

    def collect(self, everything: torch.Tensor, own: torch.Tensor) -> None:
        """Fill `everything` with the `own` of all ranks, one after the other. All have one shape."""
        with _lost_ranks_raised():
            dist.all_gather(list(everything.chunk(self.size)), own)

    def exchange(self, received: torch.Tensor, sent: torch.Tensor, n_received: list[int], n_sent: list[int]) -> None:
        """Send the first `n_sent[0]` rows of `sent` to rank 0, the next to rank 1 and so on, and fill `received` with
        the rows that come from rank 0, rank 1 and so on."""
        with _lost_ranks_raised():
            dist.all_to_all_single(received, sent, n_received, n_sent)

    def copy_from_leader(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` by that of rank 0."""
        if not self.is_alone:
            with _lost_ranks_raised():
                dist.broadcast(tensor.detach(), 0)

    def copy_bytes_from_leader(self, array: NDArray[Any]) -> None:
        """Replace the content of `array`, of any type, by that of rank 0."""
        if not self.is_alone:
            with _lost_ranks_raised():
                dist.broadcast(torch.from_numpy(array.reshape(-1).view(np.uint8)), 0, group=self._prompt)

    def agree(self, failure: Exception | None = None) -> None:
        """Wait for all ranks, and raise on all of them if one has run out of memory.

        `failure` is this rank's own, which is raised again if it is of another kind. Meanwhile stop signals spread.
        """
        if failure is not None and (self.is_alone or not is_out_of_memory(failure)):
            raise failure
        if self.is_alone:
            return
        words = torch.tensor([int(failure is not None), self.stop.number])
        with _lost_ranks_raised():
            dist.all_reduce(words, dist.ReduceOp.MAX, group=self._prompt)
        has_failed, self.stop_signal_of_all = words.tolist()
        if has_failed:
            raise SharedOutOfMemoryError("out of memory on one of the devices") from failure

    # --- commands ---

    def send(self, command: dict[str, Any]) -> None:
        """From rank 0 to all others, which wait in `receive`."""
        with self._sending:
            if self._loss is not None:
                raise self._loss
            if command["do"] == FINISH:
                self.are_waiting = False
            self._send(command)

    @contextlib.contextmanager
    def together(self, command: dict[str, Any]) -> Iterator[None]:
        """On rank 0: send `command`, and do this rank's part of it in the block. Then the others wait again, also where
        all of them have run out of memory."""
        self.are_waiting = False
        self.send(command)
        try:
            yield
        except SharedOutOfMemoryError:
            self.are_waiting = True
            raise
        self.are_waiting = True

    @contextlib.contextmanager
    def kept_waiting(self) -> Iterator[None]:
        """On rank 0: while the block runs, the others hear that this process lives, whatever it does alone.

        A process that is stopped or has lost its network falls silent, and the others give up.
        """
        if self.is_alone:
            yield
            return
        self.are_waiting, ends = True, threading.Event()
        thread = threading.Thread(target=self._keep_waiting, args=(ends,), daemon=True, name="wait for rank 0")
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()

    def _keep_waiting(self, ends: threading.Event) -> None:
        while not ends.wait(self._wait_interval_s):
            with self._sending:
                if not self.are_waiting:
                    continue
                try:
                    self._send({"do": WAIT})
                except LostRankError as loss:
                    self._loss = loss
                    return

    def _send(self, command: dict[str, Any]) -> None:
        data = json.dumps(command).encode()
        message = torch.zeros(LENGTH_BYTES + MESSAGE_BYTES, dtype=torch.uint8)
        message[:LENGTH_BYTES] = _bytes(len(data).to_bytes(LENGTH_BYTES, "little"))
        message[LENGTH_BYTES : LENGTH_BYTES + len(data)] = _bytes(data[:MESSAGE_BYTES])
        with _lost_ranks_raised():
            dist.broadcast(message, 0, group=self._prompt)
            if len(data) > MESSAGE_BYTES:
                dist.broadcast(_bytes(data[MESSAGE_BYTES:]), 0, group=self._prompt)

    def receive(self) -> dict[str, Any]:
        """The next command of rank 0."""
        while (command := self._receive())["do"] == WAIT:
            pass
        return command

    def _receive(self) -> dict[str, Any]:
        message = torch.zeros(LENGTH_BYTES + MESSAGE_BYTES, dtype=torch.uint8)
        with _lost_ranks_raised():
            dist.broadcast(message, 0, group=self._prompt)
            n_bytes = int.from_bytes(message[:LENGTH_BYTES].numpy().tobytes(), "little")
            data = message[LENGTH_BYTES:].numpy().tobytes()[:n_bytes]
            if n_bytes > MESSAGE_BYTES:
                rest = torch.zeros(n_bytes - MESSAGE_BYTES, dtype=torch.uint8)
                dist.broadcast(rest, 0, group=self._prompt)
                data += rest.numpy().tobytes()
        command: dict[str, Any] = json.loads(data)
        return command

    def gather(self, value: Any, after_preparation: bool = False) -> list[Any]:
        """The `value`, in plain JSON types, of every rank, on all of them.

        `after_preparation`: some ranks may take long to get here; each waits while the others are present.
        """
        if self.is_alone:
            return [value]
        if after_preparation and self._presence:
            self._presence.wait_for_all()
        values: list[Any] = [None] * self.size
        with _lost_ranks_raised():
            dist.all_gather_object(values, json.dumps(value), group=self._prompt)
        return [json.loads(text) for text in values]


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@contextlib.contextmanager
def _lost_ranks_raised() -> Iterator[None]:
    """Raise LostRankError for the RuntimeError with which torch reports a lost connection."""
    try:
        yield
    except RuntimeError as failure:
        if is_out_of_memory(failure):
            raise
        raise LostRankError(
            f"another process of this training has ended or does not answer ({_in_short(first_line(failure))})",
            code="rank-lost",
        ) from failure


def _in_short(message: str) -> str:
    """gloo's message without its source location and its advice."""
    return re.sub(r"^\[\S*\] ", "", message).split(". ")[0][:200]


# --- joining ---

ALONE = Ranks()
_current = ALONE


def current_ranks() -> Ranks:
    """The ranks that this process has joined, or ALONE."""
    return _current


def join_group(device_name: str, timeout_s: float) -> Ranks:
    """Join the process group of the processes that torchrun has started.

    A rank that does not answer within `timeout_s` is lost. Raises LostRankError if not all of them join.
    """
    global _current
    rank, size = rank_in_environment(), int(os.environ.get("WORLD_SIZE", 1))
    if rank is None:
        return ALONE
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    choose_interface(address)
    # torch waits far longer than its timeout for a rank 0 that never comes.
    if rank > 0 and port.isdecimal() and not wait_for_port(address, int(port), timeout_s):
        raise LostRankError(f"rank 0 does not answer at {address}:{port}", code="rank-0-absent")
    is_gpu = device_name != "cpu" and torch.cuda.is_available()
    if is_gpu:
        torch.cuda.set_device(local_rank())

    def join() -> Any:
        timeout = datetime.timedelta(seconds=timeout_s)
        device_id = torch.device("cuda", local_rank()) if is_gpu else None
        dist.init_process_group("nccl" if is_gpu else "gloo", timeout=timeout, device_id=device_id)
        return dist.new_group(backend="gloo", timeout=timeout)

    with _lost_ranks_raised():
        prompt = answered_within(timeout_s, join)
    _current = Ranks(rank, size, prompt, timeout_s)
    atexit.register(_leave_in_time)
    return _current


def _leave_in_time() -> None:
    """`leave` before the interpreter ends: gloo's threads, left to themselves, crashed one process in 27 at its end."""
    with contextlib.suppress(LostRankError):
        answered_within(HEARD_S, leave)


def leave() -> None:
    """This process is alone from here on."""
    global _current
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
    _current = ALONE


def where() -> str:
    """This process, for a message: "rank 3 on node7"."""
    return f"rank {_current.rank} on {socket.gethostname()}"


def require_shareable(device_name: str) -> None:
    """Raise UsageError for a --device that several processes cannot train on."""
    if device_name == "mps":
        raise UsageError(
            "--device mps: a Mac's GPU is one device, and torch connects no others to it; leave out --devices",
            code="mps-not-shareable",
        )
    if device_name.startswith("cuda:"):
        raise UsageError(
            f"--device {device_name} names a single GPU; with --devices, choose GPUs by CUDA_VISIBLE_DEVICES and give "
            "--device cuda",
            code="single-gpu-named",
        )
