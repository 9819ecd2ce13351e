"""Keeps the machine from falling asleep while it trains. The display may go dark.

wakepy does so on macOS, Windows and Linux desktops; without a desktop, as over ssh, we ask systemd. The display is
never kept on: on a Mac with its display on, Metal has killed training programs (mlx#3267). A closed lid, the power
button and an empty battery override all of this.
"""

import contextlib
import platform
import select
import signal
import subprocess
import sys
import threading
from typing import Self

# Longest wait for the desktop or systemd to answer, and for systemd-inhibit to exit.
ANSWER_TIMEOUT_S = 3.0
EXIT_TIMEOUT_S = 1.0


class KeepAwake:
    """A context in which the machine does not sleep when idle, if `enabled`.

    None of its methods raises, prints or takes longer than ANSWER_TIMEOUT_S.
    """

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
        """Why the machine may fall asleep and what to do, in one line; None while it cannot, or if not enabled."""
        if self._hold is None or self._hold.obstacle is None:
            return None
        return (
            f"this machine cannot be kept awake ({self._hold.obstacle}); if it is set to sleep when idle, turn that "
            "off in its power settings (servers and containers need nothing)"
        )

    def release(self) -> None:
        """Allow the machine to sleep."""
        if self._hold is not None:
            self._hold.end()
            self._hold = None

    def renew(self) -> None:
        """Keep the machine awake again after `release`."""
        if self._enabled and self._hold is None:
            self._hold = _Hold()
            self._hold.begin()


class _Hold:
    """One period of keeping awake, in its own thread: wakepy must be entered and left in the same thread, and a
    desktop may never answer."""

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
            self._answered.wait(ANSWER_TIMEOUT_S)

    def end(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(ANSWER_TIMEOUT_S)

    def _keep_awake(self) -> None:
        if sys.platform != "win32":
            # Programs that wakepy starts inherit this mask, so neither Ctrl+C nor a closed terminal ends them.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        # Leaving wakepy fails if the desktop session has ended meanwhile.
        with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
            self.obstacle = _inhibit_sleep(stack)
            self._answered.set()
            self._over.wait()


def _inhibit_sleep(stack: contextlib.ExitStack) -> str | None:
    """Keep the machine awake until `stack` closes; returns what prevented it, None if it works."""
    obstacle = _enter_wakepy(stack)
    if obstacle and sys.platform == "linux":
        if "microsoft" in platform.release().lower():
            return f"{obstacle}, and this Linux runs inside Windows, which ignores its requests"
        # Over ssh only root may take the first lock (systemd's default login1.policy); the second at least prevents
        # sleep on idle.
        if _take_systemd_lock("idle:sleep", stack) or _take_systemd_lock("idle", stack):
            return None
        return f"{obstacle}, and systemd refused"
    return obstacle


def _enter_wakepy(stack: contextlib.ExitStack) -> str | None:
    try:
        from wakepy import keep

        mode = stack.enter_context(keep.running(on_fail="pass"))
    except ImportError:
        return "wakepy is not installed"
    except Exception as error:  # it runs other programs, and training works without it
        return f"wakepy failed with {error!r}"
    return None if mode.active else "no power manager answered"


def _take_systemd_lock(what: str, stack: contextlib.ExitStack) -> bool:
    """Whether systemd-inhibit holds a lock on `what` until `stack` closes.

    It runs `cat` under the lock. `cat` echoes one line, which proves that the lock is held, and exits when its input
    closes: together with this process, however that ends.
    """
    options = [f"--what={what}", "--who=tiny_gpt", "--why=training a model", "--mode=block"]
    try:
        process = subprocess.Popen(
            ["systemd-inhibit", *options, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # out of reach of Ctrl+C and of a terminal that closes
        )
    except OSError:
        return False
    assert process.stdin and process.stdout
    with contextlib.ExitStack() as ending:
        ending.callback(_close, process)
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(b"\n")
            answers, _, _ = select.select([process.stdout], [], [], ANSWER_TIMEOUT_S)
            if answers and process.stdout.read(1):
                stack.push(ending.pop_all())
                return True
    return False


def _close(process: "subprocess.Popen[bytes]") -> None:
    with process:  # closes its pipes and waits for it
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
