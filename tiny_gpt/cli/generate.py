"""`tiny-gpt generate` and inference.py: from a prompt, a file or a conversation to text on the screen.

What goes to standard output is the text alone (or JSON); all remarks go to standard error.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tiny_gpt.config import OutputConfig, SampleConfig
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import user_path
from tiny_gpt.inference.engine import Engine, open_engine
from tiny_gpt.inference.generate import Text, write
from tiny_gpt.ui.terminal import error, printable

# Texts that are written at once; each takes a cache of its own.
BATCH = 32
# Of a longer prompt the screen shows the end only.
SHOWN_PROMPT = 2000
MAX_SEED = 2**63


def write_samples(path: Path, config: SampleConfig, manner: OutputConfig) -> int:
    """Write `config.num_samples` texts with the model at `path`, or as many as a person asks for. The exit code."""
    if manner.prompt_file:
        config = replace(config, prompt=read_prompt(manner.prompt_file))
    writer = open_engine(path, config.device)
    if writer.must_compile:
        error("(compiling the decoder for this processor: some seconds, once)")
    seed = config.seed
    if seed is None:
        seed = random.SystemRandom().randrange(2**31)
        if config.temperature > 0:
            error(f"(--seed {seed} writes the same again)")
    if manner.interactive:
        converse(writer, config, seed, manner)
        return 0
    seeds = [(seed + i) % MAX_SEED for i in range(config.num_samples)]
    for start in range(0, len(seeds), BATCH):
        batch = write(writer, config, seeds[start : start + BATCH])
        if manner.json:
            show_json(config, batch)
        else:
            show(config, batch, not manner.no_stream, start)
    return 0


def read_prompt(name: str) -> str:
    """The text of a file or of standard input, without the line feed that ends it. Raises BadInputError."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else user_path(name).read_bytes()
    except OSError as failure:
        raise BadInputError(
            f"--prompt-file {name}: {failure.strerror}; name a text file, or - for standard input"
        ) from None
    try:
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as failure:
        raise BadInputError(f"--prompt-file {name} is not UTF-8 (byte {failure.start}); save it as UTF-8") from None


def show(config: SampleConfig, batch: Iterator[list[Text]], streams: bool, n_before: int) -> None:
    """The first text of a batch as it grows, the others, which grow beside it, after it."""
    texts: list[Text] = []
    for n_steps, texts in enumerate(batch):
        if n_steps == 0:
            head(config, n_before)
        if streams:
            tell_more(texts[0])
    for number, text in enumerate(texts):
        if number > 0:
            head(config, n_before + number)
        tell_more(text)
        print()


def head(config: SampleConfig, number: int) -> None:
    """What stands before a text: its number where there are several, and its prompt."""
    if config.num_samples > 1:
        print(f"{'' if number == 0 else chr(10)}--- {number + 1} of {config.num_samples} ---")
    prompt = config.prompt
    if len(prompt) > SHOWN_PROMPT:
        prompt = "…" + prompt[-SHOWN_PROMPT:]
    print(printable(prompt), end="", flush=True)


def tell_more(text: Text) -> None:
    if piece := text.take():
        print(printable(piece), end="", flush=True)


def show_json(config: SampleConfig, batch: Iterator[list[Text]]) -> list[Text]:
    """A line for each text: its prompt, what follows it, its seed, its length, and whether a stop text ended it."""
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


def converse(writer: Engine, config: SampleConfig, seed: int, manner: OutputConfig) -> None:
    """Continue one line after the other, until the input ends. Ctrl+C ends a text only."""
    decoder = writer.make_decoder(1, config.precision)
    asks = sys.stdin.isatty()
    if asks:
        error("Type a prompt. An empty line goes on with the text, Ctrl+C stops it, Ctrl+D ends.")
    so_far = ""
    while line := _next_line(asks):
        config = replace(config, prompt=line.rstrip("\r\n") or so_far, num_samples=1)
        batch = write(writer, config, [seed], decoder)
        if not asks and not manner.json:  # nobody has seen it typed
            head(config, 0)
        so_far = config.prompt
        seed = (seed + 1) % MAX_SEED
        if manner.json:
            so_far += show_json(config, batch)[-1].text
            continue
        try:
            for (text,) in batch:
                so_far = config.prompt + text.text
                if not manner.no_stream or text.is_done:
                    tell_more(text)
        except KeyboardInterrupt:
            pass
        print("" if asks else "\n", flush=True)


def _next_line(asks: bool) -> str:
    if asks:
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()
