"""A training in a forked process that can be killed. Forking avoids importing torch again, which takes seconds."""

import faulthandler
import importlib
import mmap
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from tiny_gpt.cli import main as cli
from tiny_gpt.cli import session as train_command
from tiny_gpt.cli.overrides import parse_run, recipe_config
from tiny_gpt.cli.train import TrainCommand
from tiny_gpt.run import clock, trainer
from tiny_gpt.ui import samples
from tiny_gpt.view.parts import templates

TIMEOUT_S = 60.0
BROKEN_STDOUT_CODE = 120
"""CPython's exit code when it cannot flush stdout."""
N_WORDS = 2
BEGUN, DONE = range(N_WORDS)


@dataclass(frozen=True)
class Ended:
    """How a training ended."""

    code: int
    """Exit code, or minus the signal number."""
    out: str
    err: str
    begun: int
    """The last step it had started, counted from 1."""
    done: int
    """The last step it had finished."""
    seconds: float
    hung: bool = False
    """It was still running after TIMEOUT_S and was killed; `err` shows where."""

    @property
    def text(self) -> str:
        return self.out + self.err

    def has_words(self) -> bool:
        """Whether it failed cleanly: one or two lines, no traceback, no unexpected error."""
        return bool(self.err.strip()) and "Traceback" not in self.err and "bug in tiny_gpt" not in self.err

    def __str__(self) -> str:
        hung = "hung, " if self.hung else ""
        return (
            f"{hung}exit code {self.code} in step {self.begun} after {self.seconds:.2f} s: {self.err.strip()[-1500:]}"
        )


class Child:
    """`tiny-gpt ARGS`, started on construction. The child first calls `faults` with this object."""

    def __init__(
        self, args: Sequence[str], faults: Callable[["Child"], None] | None = None, stdout: int | None = None
    ) -> None:
        self._words = memoryview(mmap.mmap(-1, 8 * N_WORDS)).cast("Q")  # shared by both
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed by `wait`
        self._status: int | None = None
        self._start = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(args, faults, self._out.fileno() if stdout is None else stdout)

    @property
    def begun(self) -> int:
        return self._words[BEGUN]

    @property
    def done(self) -> int:
        return self._words[DONE]

    def send(self, number: int) -> None:
        """Send a signal; one that comes too late is ignored."""
        if not self.has_ended():
            os.kill(self.pid, number)

    def has_ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def wait(self) -> Ended:
        hung = False
        while not self.has_ended():
            if not hung and time.monotonic() - self._start > TIMEOUT_S:
                hung = True
                self.send(signal.SIGUSR1)
                time.sleep(0.5)
                self.send(signal.SIGKILL)
            time.sleep(0.002)
        seconds = time.monotonic() - self._start
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        assert self._status is not None, "it has ended"
        return Ended(os.waitstatus_to_exitcode(self._status), *texts, self.begun, self.done, seconds, hung)

    def _live(self, args: Sequence[str], faults: Callable[["Child"], None] | None, stdout: int) -> NoReturn:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(stdout, 1)
            os.dup2(self._err.fileno(), 2)
            sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
            faulthandler.enable(2)
            faulthandler.register(signal.SIGUSR1, 2)
            self._count_steps()
            be_quick()
            if faults is not None:
                faults(self)
            code = cli.main(args)
        except BaseException:
            traceback.print_exc()
        try:
            sys.stdout.flush()
        except OSError:
            code = BROKEN_STDOUT_CODE
        sys.stderr.flush()
        os._exit(code)

    def _count_steps(self) -> None:
        train_step = trainer.train_step

        def counted(model, optimizer, batch, config, step, *args, **more):  # type: ignore[no-untyped-def]
            self._words[BEGUN] = step + 1
            result = train_step(model, optimizer, batch, config, step, *args, **more)
            self._words[DONE] = step + 1
            return result

        trainer.train_step = counted  # type: ignore[assignment]


def preload() -> None:
    """Load what every child would load by itself: modules, the parser of settings, the templates of the report."""
    parse_run(TrainCommand, "tiny-gpt train", [], recipe_config("overnight", []))
    importlib.import_module("tiny_gpt.view.report")
    for name in templates().list_templates():
        templates().get_template(name)


def before_steps(act: Callable[[int], object]) -> None:
    """In the child: call `act` with the number of each step, counted from 1, before it starts."""
    train_step = trainer.train_step

    def acting(model, optimizer, batch, config, step, *args, **more):  # type: ignore[no-untyped-def]
        act(step + 1)
        return train_step(model, optimizer, batch, config, step, *args, **more)

    trainer.train_step = acting  # type: ignore[assignment]


def be_quick() -> None:
    """Write a checkpoint after every step and a short sample of every better model, whatever they cost."""
    clock.MAX_OVERHEAD = 1e9
    samples.INTERVAL_GROWTH = 0.0
    few = partial(replace, samples.SampleConfig(), max_tokens=8)
    samples.SampleConfig = train_command.SampleConfig = few  # type: ignore[misc, assignment]
