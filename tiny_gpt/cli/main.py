"""The program `tiny-gpt`: finds the command and runs it.

Neither this nor `--help` imports torch or numpy.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tiny_gpt import __version__
from tiny_gpt.cli.process import Command, run_command
from tiny_gpt.errors import UsageError
from tiny_gpt.ui.terminal import error


class CommandEntry(NamedTuple):
    """Where a command is defined. Its module is imported when it is called, so that each starts quickly."""

    module: str
    function: str
    summary: str
    """Its line in `tiny-gpt --help`: the first of the function's docstring."""
    is_unattended: bool = False
    """Whether its result is not what it prints."""

    def load(self) -> Command:
        command: Command = getattr(importlib.import_module(f"tiny_gpt.cli.{self.module}"), self.function)
        return command


COMMANDS = {
    "plan": CommandEntry("measure", "plan", "Predict a training run: model, time, memory, loss."),
    "train": CommandEntry("train", "train", "Train a model on your text.", is_unattended=True),
    "resume": CommandEntry("train", "resume", "Resume a stopped run or extend a finished one.", is_unattended=True),
    "runs": CommandEntry("runs", "runs", "List, compare and remove runs."),
    "watch": CommandEntry("watch", "watch_run", "Show a run in the browser, live."),
    "report": CommandEntry("report", "report", "Write a run's page, with a verdict and charts, as one HTML file."),
    "track": CommandEntry("trackers", "track", "Send a run to TensorBoard, Weights & Biases, Trackio or MLflow."),
    "generate": CommandEntry("generate", "generate", "Generate text with a trained model."),
    "play": CommandEntry("play", "play", "Write with a trained model in the browser and see how it thinks."),
    "serve": CommandEntry(
        "serve", "serve", "Serve models to other programs, through an API like OpenAI's.", is_unattended=True
    ),
    "data": CommandEntry(
        "data",
        "describe_data",
        "Describe a text, list the built-in datasets, or write shards.",
    ),
    "eval": CommandEntry("evaluate", "evaluate", "Score a model on a text, in bits per byte and other units."),
    "export": CommandEntry(
        "export",
        "export_model",
        "Write a model for other tools: transformers, llama.cpp, Ollama.",
        is_unattended=True,
    ),
    "import": CommandEntry(
        "export",
        "import_model",
        "Convert a model in the format of Hugging Face, GGUF or nanoGPT.",
        is_unattended=True,
    ),
    "doctor": CommandEntry("measure", "doctor", "Check that this machine computes correctly and what it can do."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`tiny-gpt COMMAND ...`; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["help"]:  # as git and others have it
        args = [*args[1:2], "--help"]
    if args[:1] == ["--version"]:
        print(f"tiny-gpt {__version__}")
        return 0
    if args and args[0] in COMMANDS:
        entry = COMMANDS[args[0]]
        return run_command(entry.load(), args[1:], needs_output=not entry.is_unattended)
    if args and args[0] not in ("-h", "--help"):
        similar = difflib.get_close_matches(args[0], COMMANDS, 1)
        meant = f"did you mean {similar[0]}? See" if similar else "see"
        error(f"tiny-gpt: unknown command {args[0]!r}; {meant} tiny-gpt --help")
        return UsageError.exit_code
    print(help_text())
    return 0


def help_text() -> str:
    """What `tiny-gpt --help` prints: one line per command."""
    lines = [f"  {name:<10} {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tiny-gpt COMMAND [...]",
            "",
            "Train a small language model on your own text, on your own computer.",
            "",
            *lines,
            "",
            "tiny-gpt COMMAND --help explains a command; --debug adds tracebacks to errors.",
        ]
    )
