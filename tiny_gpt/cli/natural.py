"""What people type instead of our flags: `--for 6 hours`, `--until 7am`, `--tokens 10M`, `--lr 3e-4`.

Natural forms become the ones that the parser knows; flags of other tools and bare numbers get an error that names what
is meant.
"""

import os
import re
from collections.abc import Sequence

from tiny_gpt.duration import is_bare_number
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.files import quoted, user_path

# Flags whose value may be several words: a number and its unit.
TIME_FLAGS = ("--for", "--until")
# Flags whose value is a count, and so may be 10k, 1.5M, 1e6 or 1,000,000.
COUNT_FLAGS = ("--steps", "--tokens", "--epochs", "--vocab-size", "--max-tokens", "--iters-per-epoch", "--warmup-steps")
_TIME_WORD = re.compile(
    r"(?:\d+(?:\.\d+)?)?(?:d|days?|h|hrs?|hours?|m|mins?|minutes?|s|secs?|seconds?|am|pm|[ap]\.m\.|o'clock|and|an?)|\d+",
    re.IGNORECASE,
)
_COUNT = re.compile(r"(\d+(?:[.,_]\d+)*)\s*(k|m|g|b|million|thousand)?", re.IGNORECASE)
_POWER_OF_TEN = re.compile(r"\d+(?:\.\d+)?e\+?\d{1,2}", re.IGNORECASE)
# The most words of a name with blanks that are looked for.
MAX_WORDS = 8
_FACTORS = {"": 1, "k": 10**3, "thousand": 10**3, "m": 10**6, "million": 10**6, "g": 10**9, "b": 10**9}

# Flags of other tools, and what they are called here.
OTHER_NAMES = {
    "--lr": "--learning-rate",
    "--max-iters": "--steps",
    "--max-steps": "--steps",
    "--num-steps": "--steps",
    "--num-train-epochs": "--epochs",
    "--n-embd": "--d-model",
    "--n-embed": "--d-model",
    "--hidden-size": "--d-model",
    "--dim": "--d-model",
    "--layers": "--n-layer",
    "--n-layers": "--n-layer",
    "--num-layers": "--n-layer",
    "--heads": "--n-head",
    "--n-heads": "--n-head",
    "--num-heads": "--n-head",
    "--context": "--block-size",
    "--context-length": "--block-size",
    "--ctx-size": "--block-size",
    "--seq-len": "--block-size",
    "--batch": "--batch-size",
    "--gradient-accumulation-steps": "--grad-accum-steps",
    "--output-dir": "--out-dir",
    "--init-from": "--start-from",
    "--resume-from": "--start-from",
    "--dtype": "--precision",
    "--compile": "--backend compiled",
    "--gpu": "--device cuda",
    "--gpus": "--devices",
    "--num-gpus": "--devices",
    "--n-gpus": "--devices",
    "--ngpus": "--devices",
    "--nproc-per-node": "--devices",
    "--cuda": "--device cuda",
    "--wandb": "--track wandb",
    "--wandb-log": "--track wandb",
    "--wandb-project": "--track wandb",
    "--time": "--for",
    "--hours": "--for 6h",
    "--minutes": "--for 30m",
    "--max-new-tokens": "--max-tokens",
    "--min-lr": "--min-learning-rate",
    "--warmup-iters": "--warmup-steps",
    "--eval-iters": "--eval-interval",
}
NOT_HERE = {
    "--workers": "the text is read by as many processes as help; leave it out",
    "--num-workers": "the text is read by as many processes as help; leave it out",
}


def natural_arguments(args: Sequence[str]) -> list[str]:
    """`args` as the parser knows them.

    Raises UsageError for a flag of another tool and for a bare number as a time, and BadInputError for a name that the
    shell took apart at its blanks.

    ["--for", "6", "hours", "--tokens", "10M"] -> ["--for", "6 hours", "--tokens", "10000000"]
    """
    _refuse_divided_names(args)
    result: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        _refuse_other_names(name, value or (rest[0] if rest else ""))
        if not equals and name in (*TIME_FLAGS, *COUNT_FLAGS) and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
            while name in TIME_FLAGS and rest and _TIME_WORD.fullmatch(rest[0]):
                value += f" {rest.pop(0)}"
        elif not equals:
            result.append(word)
            continue
        result += [word] if equals and name not in (*TIME_FLAGS, *COUNT_FLAGS) else [name, _value(name, value)]
    return result


def _value(name: str, value: str) -> str:
    if name in TIME_FLAGS:
        is_bare = is_bare_number(value) if name == "--for" else re.fullmatch(r"\d\d?", value)
        if is_bare and value.strip("0. "):
            of_what = f"{name} {value}h (hours), {name} {value}m (minutes) or {name} {value}s (seconds)"
            if name == "--until":
                of_what = f"{name} {value}am or {name} {value}:00"
            raise UsageError(f"{name} {value}: of what? Give {of_what}", code="number-without-unit")
        return value
    if _POWER_OF_TEN.fullmatch(value.strip()) and float(value).is_integer():
        return str(int(float(value)))
    match = _COUNT.fullmatch(value.strip())
    if match is None:
        return value  # the parser explains what is wrong
    number, unit = match[1], (match[2] or "").lower()
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+", number):
        number = number.replace(",", "")
    number = number.replace("_", "")
    try:
        count = float(number) * _FACTORS[unit]
    except ValueError:
        return value
    return str(round(count)) if unit or number != match[1] else value


def _refuse_divided_names(args: Sequence[str]) -> None:
    """Raise BadInputError where words that are no files are together the name of one: my book.txt for 'my book.txt'."""
    for start, word in enumerate(args):
        if word.startswith("-") or _exists(word):
            continue
        for end in range(start + 2, min(start + MAX_WORDS, len(args)) + 1):
            if args[end - 1].startswith("--"):
                break
            if _exists(whole := " ".join(args[start:end])):
                raise BadInputError(
                    f"no such file or folder: {word}. If you mean the one called {whole!r}, write {quoted(whole)}: a "
                    "shell takes a name apart at its blanks",
                    code="path-not-quoted",
                )


def _exists(name: str) -> bool:
    """Whether there is a file or folder, or a run of that name."""
    try:
        return bool(name) and (user_path(name).exists() or os.path.exists(os.path.join("runs", name)))
    except (OSError, ValueError):  # such as a name that is too long: what uses it says so
        return False


def _refuse_other_names(name: str, value: str) -> None:
    if ours := OTHER_NAMES.get(name):
        shown = f"{ours} {value}" if value and not value.startswith("-") and " " not in ours else ours
        raise UsageError(f"{name}: in tiny_gpt this is {shown}", code="flag-of-another-tool")
    if advice := NOT_HERE.get(name):
        raise UsageError(f"{name}: {advice}", code="flag-not-here")
