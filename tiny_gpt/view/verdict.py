"""A run in a sentence, and what to do next: at most three commands, each with its reason."""

import math
import shlex
from dataclasses import dataclass

from tiny_gpt.duration import format_duration
from tiny_gpt.view.axes import clock_label
from tiny_gpt.view.run_view import RunView
from tiny_gpt.view.signs import Signs, signs_of

MAX_SUGGESTIONS = 3
# A timed run is evaluated 40 times at most. Silence for this share of its time, or this many seconds, is remarkable.
QUIET_SHARE, QUIET_S = 0.1, 600.0


@dataclass(frozen=True)
class Suggestion:
    """A command to copy."""

    command: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What to think of a run."""

    tone: str
    """good, busy, warn or bad."""
    headline: str
    """A few words."""
    sentence: str
    """When it ends or ended, and the best loss."""
    suggestions: tuple[Suggestion, ...] = ()


def judge(view: RunView, run: str = "") -> Verdict:
    """The verdict on a run. `run` is how commands name it; by default its folder's name."""
    signs = signs_of(view)
    tone, headline = _headline(view, signs)
    sentence = " ".join(filter(None, [_end(view), _best(view)]))
    suggestions = _suggestions(view, signs, shlex.quote(run or view.name))
    return Verdict(tone, headline, sentence, tuple(suggestions[:MAX_SUGGESTIONS]))


def _headline(view: RunView, signs: Signs) -> tuple[str, str]:
    state = view.state
    if state == "failed":
        diverged = view.status is not None and view.status.error_code == "training-diverged"
        return "bad", "Diverged: the loss grew out of control." if diverged else "Failed. Everything saved is intact."
    if state == "died":
        return "bad", "The training process is gone. Everything saved is intact."
    if state == "stopped":
        return "warn", "Stopped early. It can be resumed."
    if state == "preparing":
        return "busy", "Preparing the text and the model."
    if state == "restarting":
        return "warn", "The training process ended; the watchdog is restarting it."
    if state == "paused":
        return "warn", "Paused until the machine allows more."
    doing = "Finished" if state == "finished" else "Learning"
    if signs.is_too_fast:
        return "warn", f"{doing}, but unsteadily: the learning rate is probably too high."
    if signs.overfits_since is not None:
        kept = "The best model was kept." if state == "finished" else "The best model is kept."
        return "warn", f"{doing}, but it has begun to memorize your text. {kept}"
    if signs.is_memorizing:
        return "warn", f"{doing}, and memorizing your text: more text would help."
    if state == "finished":
        return "good", "Finished well."
    if view.n_rows == 0:
        return "busy", "Training has begun; the first evaluation comes soon."
    if _is_silent(view):
        return "warn", "Learning, but nothing new has been heard for a while."
    return "good", "Learning normally."


def _is_silent(view: RunView) -> bool:
    if view.status is None:
        return False
    return view.now - view.status.updated > max(QUIET_S, QUIET_SHARE * view.elapsed_s)


def _end(view: RunView) -> str:
    if view.state == "preparing":
        return "The text is read and the machine is measured; training begins after that."
    left_s = view.left_s
    if left_s is not None:
        day = "" if left_s < 20 * 3600 else "in " + format_duration(left_s) + ", at "
        return f"Ends {day}{clock_label(view.now + left_s)}." if left_s > 0 else "Ends any moment."
    if view.is_over and view.n_rows:
        ended = view.status.updated if view.status and view.status.updated else None
        took = f"after {format_duration(view.elapsed_s)}"
        words = {"finished": "Ended", "stopped": "Stopped", "failed": "Failed", "died": "Last heard of"}[view.state]
        return f"{words} {f'at {_moment(ended, view.now)}, ' if ended else ''}{took} of training."
    return ""


def _moment(instant: float, now: float) -> str:
    return clock_label(instant, 60.0, with_day=False) if now - instant < 20 * 3600 else _date(instant)


def _date(instant: float) -> str:
    return f"{clock_label(instant)} on {clock_label(instant, 86_400.0)}"


def _best(view: RunView) -> str:
    if view.best is None:
        return ""
    value = float(view.val[view.best])
    at = ""
    if view.times is not None:
        at = f" at {_moment(float(view.times[view.best]), view.now)}"
    return f"Best {value:.3f} bits per byte{at}."


def _suggestions(view: RunView, signs: Signs, run: str) -> list[Suggestion]:
    sources = " ".join(shlex.quote(source) for source in _sources(view)) or "my_text.txt"
    if view.state in ("stopped", "died") or (view.state == "failed" and not signs.is_too_fast):
        step = f", that of step {view.checkpoint.step:,}" if view.checkpoint else ""
        found = [Suggestion(f"tiny-gpt resume {run}", f"continues from the last checkpoint{step}")]
        if view.best is not None and view.state != "failed":
            minutes = max(1, round(view.elapsed_s / 600))
            found.append(
                Suggestion(
                    f"tiny-gpt resume {run} --for {minutes}m --cooldown 1",
                    "ends it soon: decays the learning rate to zero, which gains more than it costs",
                )
            )
        return found + _try_it(view, run)
    found = []
    if signs.is_too_fast:
        found.append(
            Suggestion(
                f"tiny-gpt train {sources} --new --learning-rate {_lower_rate(view)}",
                f"half the learning rate: this run had {_unsteadiness(signs)}",
            )
        )
    if signs.is_small_text:
        epochs = view.data_epochs
        times = f" {epochs:,.0f} times" if epochs else ""
        found.append(
            Suggestion(
                f"tiny-gpt train {sources} more_text.txt --for {_for(view.elapsed_s)}",
                f"more text of the same kind helps most: this model has read yours{times}",
            )
        )
    if signs.overfits_since is not None and view.state == "finished":
        useful_s = float(view.metrics.column("elapsed_s")[signs.overfits_since])
        found.append(
            Suggestion(
                f"tiny-gpt train {sources} --new --for {_for(useful_s)}",
                f"the loss was lowest after {format_duration(useful_s)}; a run planned for that time ends better",
            )
        )
    if signs.is_too_short:
        found.append(Suggestion(f"tiny-gpt resume {run} --for 8h", "the loss was still falling when the time was over"))
    return found + (_try_it(view, run) if view.is_over else [])


def _try_it(view: RunView, run: str) -> list[Suggestion]:
    if view.best is None:
        return []
    return [
        Suggestion(f"tiny-gpt generate {run}", "the best model writes"),
        Suggestion(f"tiny-gpt export {run} --to gguf", "for llama.cpp, Ollama and LM Studio"),
    ]


def _sources(view: RunView) -> list[str]:
    found = view.config.get("data")
    return [str(source) for source in found][:20] if isinstance(found, list) else []


def _lower_rate(view: RunView) -> str:
    rate = view.config.get("learning_rate")
    is_rate = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf
    return f"{rate / 2:.1g}" if is_rate and isinstance(rate, int | float) else "0.0005"


def _unsteadiness(signs: Signs) -> str:
    counts = {"rollback": signs.n_rollbacks, "skipped step": signs.n_skipped, "spike": signs.n_spikes}
    parts = [f"{n:,} {name}{'s' * (n > 1)}" for name, n in counts.items() if n]
    return " and ".join(parts) or "a loss that grew"


def _for(seconds: float) -> str:
    """A duration as flags have it: 90m, 6h."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes}m" if minutes < 120 else f"{round(minutes / 60)}h"
