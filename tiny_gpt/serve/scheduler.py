"""Writes the texts of many requests at once, in one thread: continuous batching.

Between two passes through the model, texts of new requests join those that are being written, and texts that ended or
whose client has left make room. Nobody waits for a reader: texts grow in memory, and readers look at them whenever
they like.

Each text is the same as `tiny-gpt generate` writes alone with the same seed, as logits do not depend on what else is in
a pass.
"""

import itertools
import logging
import math
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.errors import TinyGPTError
from tiny_gpt.inference.decoder import BatchDecoder
from tiny_gpt.serve.jobs import PromptJob, Submission, TextJob
from tiny_gpt.web.errors import RefusedError

log = logging.getLogger("tiny_gpt.serve")
LONGEST_RETRY_AFTER_S = 60
# Weight of the newest text in the mean duration of a text.
NEWEST_WEIGHT = 0.2


class _Running(NamedTuple):
    """A text in the decoder."""

    submission: Submission
    prompt: PromptJob
    text: TextJob
    started_at: float


class Scheduler:
    """Owns a decoder and the thread that runs it. Its methods may be called from any thread."""

    def __init__(self, decoder: BatchDecoder, max_batch: int, max_queue: int) -> None:
        """Up to `max_batch` texts are written at once; up to `max_queue` submissions may wait."""
        self._decoder, self._max_batch, self._max_queue = decoder, max_batch, max_queue
        self._running: dict[int, _Running] = {}
        # Submissions of which at least one text has not been begun.
        self._waiting: list[Submission] = []
        self._changed = threading.Condition()
        self.is_stopping = False
        """Whether only what has begun is still written."""
        self._text_s = 1.0
        self.n_written = 0
        """Tokens written so far, all texts together."""
        self.n_read = 0
        """Tokens of prompts so far."""
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def n_running(self) -> int:
        """Texts that are being written."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Submissions that wait for their first text to begin."""
        return sum(submission.n_begun == 0 for submission in self._waiting)

    def submit(self, submission: Submission) -> None:
        """Have its texts written. Raises RefusedError when the queue is full or the server stops."""
        with self._changed:
            if self.is_stopping:
                raise RefusedError(503, "the server is stopping", "stopping")
            if self.n_waiting >= self._max_queue:
                seconds = self._seconds_to_wait()
                raise RefusedError(
                    429,
                    f"{self._max_queue} requests are waiting already; try again in about {seconds} s",
                    "queue-full",
                    headers={"Retry-After": str(seconds)},
                )
            self._waiting.append(submission)
            self._changed.notify()

    def cancel(self, submission: Submission) -> None:
        """End the submission's texts before the next pass; nothing happens to one that is complete."""
        submission.is_cancelled = True
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        """Refuse what waits and what comes; what is being written is finished."""
        with self._changed:
            self.is_stopping = True
            waiting = [submission for submission in self._waiting if submission.n_begun == 0]
            self._changed.notify()
        for submission in waiting:
            self._fail(submission, RefusedError(503, "the server is stopping", "stopping"))

    def close(self) -> None:
        """End everything now."""
        self.stop()
        for submission in {running.submission for running in list(self._running.values())}:
            self.cancel(submission)
        self._thread.join(timeout=5.0)

    def _seconds_to_wait(self) -> int:
        n_texts = sum(submission.n_texts for submission in self._waiting)
        return min(LONGEST_RETRY_AFTER_S, max(1, math.ceil(self._text_s * n_texts / self._max_batch)))

    # What follows runs in the scheduler's thread.

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._running and not self._waiting:
                    if self.is_stopping:
                        return
                    self._changed.wait()
            try:
                self._iterate()
            except Exception:
                # A fault of ours, or no memory; it ends the requests at hand, not the server.
                log.exception("a pass through the model failed")
                for submission in self._submissions():
                    self._fail(submission, RefusedError(500, "the model failed; the server's log has more", "failed"))
                self._drop_ended()

    def _iterate(self) -> None:
        self._check_deadlines()
        self._drop_ended()
        self._admit()
        touched: dict[int, Submission] = {}
        for number, position, logits_V in self._decoder.run_pass():
            running = self._running[number]
            self._take_logits(number, running, position, logits_V)
            touched[id(running.submission)] = running.submission
        for submission in touched.values():
            if submission.wants_progress or submission.is_over:
                submission.notify()

    def _submissions(self) -> Iterable[Submission]:
        found = itertools.chain((running.submission for running in self._running.values()), self._waiting)
        return {id(submission): submission for submission in found}.values()

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for submission in self._submissions():
            if now > submission.deadline:
                self._fail(submission, RefusedError(504, "the request took too long", "timeout"))

    def _fail(self, submission: Submission, error: RefusedError) -> None:
        submission.error = submission.error or error
        submission.notify()

    def _drop_ended(self) -> None:
        """Free the places of submissions that failed or were cancelled."""
        for number, running in list(self._running.items()):
            if running.submission.is_ended_early:
                del self._running[number]
                self._decoder.remove(number)
        with self._changed:
            self._waiting = [each for each in self._waiting if not each.is_ended_early and each.has_waiting_text]

    def _admit(self) -> None:
        """Begin texts while there is room. Requests with fewer texts in work come first: one with a hundred prompts
        does not keep the others waiting."""
        while len(self._running) < self._max_batch:
            ready = [(submission, prompt) for submission in self._waiting if (prompt := submission.ready_prompt())]
            if not ready:
                return
            submission, prompt = min(ready, key=lambda pair: pair[0].n_begun - pair[0].n_finished)
            number = self._decoder.add(prompt.ids, prompt.max_tokens, prompt.is_scored and not prompt.is_read)
            if number is None:
                return
            self.n_read += len(prompt.ids)
            prompt.is_started = True
            self._begin(number, submission, prompt)

    def _begin(self, number: int, submission: Submission, prompt: PromptJob) -> None:
        submission.n_begun += 1
        self._running[number] = _Running(submission, prompt, prompt.waiting.pop(0), time.monotonic())

    def _take_logits(self, number: int, running: _Running, position: int, logits_V: NDArray[np.float32]) -> None:
        prompt = running.prompt
        if position < len(prompt.ids) - 1:
            prompt.add_score(position + 1, logits_V)
            return
        if not prompt.is_read:
            prompt.is_read = True
            # The other texts share what the first has read.
            while prompt.waiting and len(self._running) < self._max_batch:
                other = self._decoder.fork(number)
                if other is None:
                    break
                self._begin(other, running.submission, prompt)
                self._write(other, self._running[other], logits_V)
        self._write(number, running, logits_V)

    def _write(self, number: int, running: _Running, logits_V: NDArray[np.float32]) -> None:
        """Draw a text's next token."""
        submission, prompt, text, started_at = running
        try:
            next_id = text.take(logits_V) if prompt.max_tokens else None
        except TinyGPTError as error:  # damaged weights
            self._fail(submission, RefusedError(500, str(error), error.code))
            return
        self.n_written += prompt.max_tokens > 0
        if next_id is not None:
            self._decoder.append(number, next_id)
            return
        text.finish_reason = text.finish_reason or "length"
        del self._running[number]
        self._decoder.remove(number)
        submission.n_finished += 1
        self._text_s += NEWEST_WEIGHT * (time.monotonic() - started_at - self._text_s)
