"""`tiny-gpt generate` and inference.py: text from a model, for a prompt, a file or prompts typed one by one.

Standard output gets the text alone (or JSON), so that it can be piped; everything else goes to standard error.
"""

import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_gpt.cli.arguments import ModelArgument, parse
from tiny_gpt.cli.process import run_command
from tiny_gpt.config import BEST_FILE, OutputConfig, SampleConfig
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.files import quoted, user_path
from tiny_gpt.run.folders import find_model, newest_model
from tiny_gpt.ui.terminal import error, printable

if TYPE_CHECKING:  # they import numpy, which --help must not
    from tiny_gpt.inference.engine import Engine
    from tiny_gpt.inference.generate import Text

# Samples generated at once; each needs a KV cache of its own.
MAX_BATCH_SIZE = 32
# Characters of a long prompt that are printed: its end.
MAX_PROMPT_SHOWN = 2000
MAX_SEED = 2**63


@dataclass(frozen=True)
class GenerateScript:
    """Generate text with a trained model."""

    sampling: SampleConfig = field(default_factory=SampleConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class GenerateCommand(GenerateScript):
    """Generate text with a trained model."""

    model: ModelArgument = ""
    """A run, model file, exported folder, GGUF file or hf:OWNER/NAME; the same as --checkpoint."""


# inference.py uses the model that train.py saves in the same folder.
SCRIPT_DEFAULTS = GenerateScript(SampleConfig(checkpoint=BEST_FILE))


def generate(args: Sequence[str]) -> int:
    """Generate text with a trained model."""
    words = list(takewhile(lambda word: not word.startswith("-"), args))
    if len(words) > 1:
        raise UsageError(
            f"{' '.join(words)}: name one model; to continue a text, give it as --prompt {quoted(' '.join(words))}",
            code="words-as-prompt",
        )
    command = parse(GenerateCommand, "tiny-gpt generate", args)
    if command.model and command.sampling.checkpoint:
        raise UsageError(
            f"{command.model} and --checkpoint {command.sampling.checkpoint}: give only one of them", code="two-models"
        )
    try:
        return _generate(command, command.model or command.sampling.checkpoint)
    except BadInputError as failure:
        if command.model and failure.code in ("model-not-found", "no-model-yet"):
            raise BadInputError(
                f"{failure}.\nTo continue a text, give it as --prompt {quoted(command.model)}", code="prompt-as-model"
            ) from failure
        raise


def inference_script() -> int:
    """`python3 inference.py`."""

    def run(args: Sequence[str]) -> int:
        command = parse(GenerateScript, "inference.py", args, SCRIPT_DEFAULTS)
        model = command.sampling.checkpoint
        if model == BEST_FILE and not Path(BEST_FILE).exists() and (newest := newest_model()):
            error(f"(no {BEST_FILE} here, where train.py writes it; using {newest})")
            model = str(newest)
        return _generate(command, model)

    return run_command(run, sys.argv[1:])


def _generate(command: GenerateScript, model: str) -> int:
    sampling, output, default = command.sampling, command.output, SampleConfig()
    if output.prompt_file and sampling.prompt != default.prompt:
        raise UsageError("--prompt and --prompt-file: give only one of them", code="two-prompts")
    if output.interactive and sampling.num_samples != default.num_samples:
        raise UsageError(
            f"--interactive writes one sample per prompt: leave out --num-samples {sampling.num_samples}",
            code="interactive-with-num-samples",
        )
    return print_samples(find_model(model), sampling, output)


def print_samples(path: Path, config: SampleConfig, output: OutputConfig) -> int:
    """Print `config.num_samples` samples of the model at `path`, or one for each line typed. Returns the exit code."""
    from tiny_gpt.inference.engine import open_engine
    from tiny_gpt.inference.generate import write
    from tiny_gpt.inference.prompts import fitting_prompt

    if output.prompt_file:
        config = replace(config, prompt=read_prompt(output.prompt_file))
    engine = open_engine(path, config.device)
    if not output.prompt_file:
        config = fitting_prompt(config, engine.tokenizer)
    config = replace(config, stop=tuple(map(unescaped, config.stop)))
    if "\\n" in config.prompt and not output.prompt_file:
        error(
            "(\\n in --prompt is a backslash and an n; for a line end use --prompt-file, or $'...\\n' in bash and zsh)"
        )
    if engine.must_compile:
        error("(compiling the decoder for this CPU: takes some seconds, only once)")
    seed = config.seed
    if seed is None:
        seed = random.SystemRandom().randrange(2**31)
        if config.temperature > 0:
            error(f"(--seed {seed} generates the same text again)")
    if output.interactive:
        _converse(engine, config, seed, output)
        return 0
    seeds = [(seed + i) % MAX_SEED for i in range(config.num_samples)]
    for start in range(0, len(seeds), MAX_BATCH_SIZE):
        batch = write(engine, config, seeds[start : start + MAX_BATCH_SIZE])
        if output.json:
            _print_json(config, batch)
        else:
            _print_batch(config, batch, not output.no_stream, start)
    return 0


def unescaped(stop: str) -> str:
    """A stop text with the escapes \\n, \\t and \\\\ replaced."""
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], stop)


def read_prompt(name: str) -> str:
    """The text of a file, or of standard input for "-", without its last newline. Raises BadInputError."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else user_path(name).read_bytes()
    except OSError as failure:
        raise BadInputError(
            f"--prompt-file {name}: {failure.strerror}; name a text file, or - for standard input",
            code="prompt-file-unreadable",
        ) from None
    try:
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as failure:
        raise BadInputError(
            f"--prompt-file {name} is not UTF-8 (byte {failure.start}); save it as UTF-8", code="prompt-file-not-utf8"
        ) from None


def _print_batch(config: SampleConfig, batch: Iterator[list["Text"]], streams: bool, n_before: int) -> None:
    """Print the first sample while it grows, then the others, which were generated beside it.

    `n_before` samples have been printed already.
    """
    texts: list[Text] = []
    for n_steps, texts in enumerate(batch):
        if n_steps == 0:
            _print_head(config, n_before)
        if streams:
            _print_new(texts[0])
    for i, text in enumerate(texts):
        if i > 0:
            _print_head(config, n_before + i)
        _print_new(text)
        print()


def _print_head(config: SampleConfig, index: int) -> None:
    """Print what precedes sample number `index`: its number if there are several, and the prompt."""
    if config.num_samples > 1:
        print(f"{'' if index == 0 else chr(10)}--- {index + 1} of {config.num_samples} ---")
    prompt = config.prompt
    if len(prompt) > MAX_PROMPT_SHOWN:
        prompt = "…" + prompt[-MAX_PROMPT_SHOWN:]
    print(printable(prompt), end="", flush=True)


def _print_new(text: "Text") -> None:
    """Print what `text` has grown by since the last call."""
    if piece := text.take():
        print(printable(piece), end="", flush=True)


def _print_json(config: SampleConfig, batch: Iterator[list["Text"]]) -> list["Text"]:
    """Print one JSON object per finished sample; returns the samples."""
    texts = list(batch)[-1]
    for text in texts:
        line = {
            "prompt": config.prompt,
            "text": text.text,
            "seed": text.seed,
            "n_tokens": text.n_tokens,
            "stopped": text.is_stopped,
        }
        print(json.dumps(line), flush=True)
    return texts


def _converse(engine: "Engine", config: SampleConfig, seed: int, output: OutputConfig) -> None:
    """Continue each line typed, until the input ends. Ctrl+C ends only the current sample."""
    from tiny_gpt.inference.generate import write

    decoder = engine.make_decoder(1, config.precision)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        error("Type a prompt. An empty line continues the text, Ctrl+C stops it, Ctrl+D quits.")
    so_far = ""
    while line := _next_line(is_terminal):
        config = replace(config, prompt=line.rstrip("\r\n") or so_far, num_samples=1)
        batch = write(engine, config, [seed], decoder)
        if not is_terminal and not output.json:  # a terminal has shown the prompt as it was typed
            _print_head(config, 0)
        so_far = config.prompt
        seed = (seed + 1) % MAX_SEED
        if output.json:
            so_far += _print_json(config, batch)[-1].text
            continue
        try:
            for (text,) in batch:
                so_far = config.prompt + text.text
                if not output.no_stream or text.is_done:
                    _print_new(text)
        except KeyboardInterrupt:
            pass
        print("" if is_terminal else "\n", flush=True)


def _next_line(is_terminal: bool) -> str:
    if is_terminal:
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()
