"""Keeps the machine from falling asleep while it trains. The display may go dark.

wakepy asks macOS, Windows and Linux desktops; where no desktop listens, as over ssh, systemd is asked. Never the
display: on a Mac whose display is on, Metal has ended training programs (mlx#3267). A closed lid, the power button and
an empty battery are stronger than all of this.
"""

import contextlib
import platform
import select
import signal
import subprocess
import sys
import threading
from typing import Self

ANSWER_S = 3.0
GOOD_BYE_S = 1.0


class Awake:
    """A context without idle sleep, where `enabled`. Nothing in it raises, prints or takes longer than ANSWER_S."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._hold: _Hold | None = None

    def __enter__(self) -> Self:
        self.renew()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def problem(self) -> str | None:
        """A line about why the machine may fall asleep and what to do; None while it cannot, and when not enabled."""
        if self._hold is None or self._hold.obstacle is None:
            return None
        return (
            f"nothing keeps this machine awake ({self._hold.obstacle}); if it is set to sleep when idle, turn that off "
            "in its power settings (servers and containers need nothing)"
        )

    def release(self) -> None:
        """Let the machine sleep if it wants to."""
        if self._hold is not None:
            self._hold.end()
            self._hold = None

    def renew(self) -> None:
        """Keep it awake again."""
        if self._enabled and self._hold is None:
            self._hold = _Hold()
            self._hold.begin()


class _Hold:
    """One time of keeping awake, in a thread of its own: wakepy wants it all in one, and a desktop may never answer."""

    def __init__(self) -> None:
        self.obstacle: str | None = "the system did not answer"
        self._answered, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_awake, name="awake", daemon=True)

    def begin(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            self.obstacle = str(error)
        else:
            self._answered.wait(ANSWER_S)

    def end(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(ANSWER_S)

    def _keep_awake(self) -> None:
        if sys.platform != "win32":
            # What wakepy starts here inherits this, so that neither Ctrl+C nor a closed terminal ends it.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        # Saying good-bye fails where a desktop session has ended during the night.
        with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
            self.obstacle = _ask(stack)
            self._answered.set()
            self._over.wait()


def _ask(stack: contextlib.ExitStack) -> str | None:
    """Keep the machine awake until `stack` closes; returns what was in the way, None if nothing."""
    obstacle = _ask_wakepy(stack)
    if obstacle and sys.platform == "linux":
        if "microsoft" in platform.release().lower():
            return f"{obstacle} and this Linux runs inside Windows, which does not listen to it"
        # Over ssh the first is refused to all but root (the defaults of systemd's login1.policy); the second is better
        # than nothing.
        if _hold_lock("idle:sleep", stack) or _hold_lock("idle", stack):
            return None
        return f"{obstacle} and systemd does not help"
    return obstacle


def _ask_wakepy(stack: contextlib.ExitStack) -> str | None:
    try:
        from wakepy import keep

        mode = stack.enter_context(keep.running(on_fail="pass"))
    except ImportError:
        return "wakepy is not installed"
    except Exception as error:  # it runs all sorts of things, and training can do without
        return f"wakepy failed with {error!r}"
    return None if mode.active else "no power manager answers"


def _hold_lock(what: str, stack: contextlib.ExitStack) -> bool:
    """Whether a `cat` runs that holds systemd's lock. It ends with its input: with this process, however that ends."""
    options = [f"--what={what}", "--who=tiny_gpt", "--why=training a model", "--mode=block"]
    try:
        process = subprocess.Popen(
            ["systemd-inhibit", *options, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # a terminal that closes, or its Ctrl+C, is no concern of it
        )
    except OSError:
        return False
    assert process.stdin and process.stdout
    with contextlib.ExitStack() as ending:
        ending.callback(_end, process)
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(b"\n")
            answers, _, _ = select.select([process.stdout], [], [], ANSWER_S)
            if answers and process.stdout.read(1):
                stack.push(ending.pop_all())
                return True
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    with process:  # closes its pipes, and waits for it in the end
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(GOOD_BYE_S)
        except subprocess.TimeoutExpired:
            process.kill()
