"""The program `tiny-gpt`: finds the command and runs it.

Neither this nor `--help` imports torch or numpy.
"""

import sys
from collections.abc import Sequence

from tiny_gpt import __version__
from tiny_gpt.cli.arguments import documentation
from tiny_gpt.cli.data import describe_data
from tiny_gpt.cli.evaluate import evaluate
from tiny_gpt.cli.export import export_model, import_model
from tiny_gpt.cli.generate import generate
from tiny_gpt.cli.measure import doctor, plan
from tiny_gpt.cli.play import play
from tiny_gpt.cli.process import Command, run_command
from tiny_gpt.cli.report import report
from tiny_gpt.cli.runs import runs
from tiny_gpt.cli.serve import serve
from tiny_gpt.cli.trackers import track
from tiny_gpt.cli.train import resume, train
from tiny_gpt.cli.watch import watch_run
from tiny_gpt.errors import UsageError
from tiny_gpt.ui.terminal import error

# The first line of a function's docstring is its line in `tiny-gpt --help`.
COMMANDS: dict[str, Command] = {
    "plan": plan,
    "train": train,
    "resume": resume,
    "runs": runs,
    "watch": watch_run,
    "report": report,
    "track": track,
    "generate": generate,
    "play": play,
    "serve": serve,
    "data": describe_data,
    "eval": evaluate,
    "export": export_model,
    "import": import_model,
    "doctor": doctor,
}
# Commands whose result is not what they print.
UNATTENDED = ("train", "resume", "export", "import", "serve")


def main(argv: Sequence[str] | None = None) -> int:
    """`tiny-gpt COMMAND ...`; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        print(f"tiny-gpt {__version__}")
        return 0
    if args and args[0] in COMMANDS:
        return run_command(COMMANDS[args[0]], args[1:], needs_output=args[0] not in UNATTENDED)
    if args and args[0] not in ("-h", "--help"):
        error(f"tiny-gpt: unknown command {args[0]!r}; see tiny-gpt --help")
        return UsageError.exit_code
    print(help_text())
    return 0


def help_text() -> str:
    """What `tiny-gpt --help` prints: one line per command."""
    lines = [f"  {name:<10} {documentation(command).splitlines()[0]}" for name, command in COMMANDS.items()]
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
