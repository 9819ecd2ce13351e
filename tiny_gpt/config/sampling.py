"""How text is generated and printed, and how a model is scored."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from tiny_gpt.config.checks import OPTIONAL, require, require_positive
from tiny_gpt.config.data import DataConfig


@dataclass(frozen=True)
class SampleConfig:
    """How text is sampled from the model."""

    prompt: str = "The"
    """Text to continue; may be empty."""
    max_tokens: int = 200
    """Maximum number of tokens to generate."""
    temperature: float = 0.8
    """Lower is more predictable, higher more varied; 0 always picks the most likely token."""
    top_k: Annotated[int, OPTIONAL] = 0
    """Sample only from the k most likely tokens; 0 means all."""
    top_p: float = 1.0
    """Sample only from the most likely tokens whose probabilities add up to this (nucleus sampling)."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the most likely token's probability, such as 0.05."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that already occur in the text become less likely."""
    stop: Annotated[tuple[str, ...], arg(metavar="TEXT ..."), OPTIONAL] = ()
    """Stop before any of these texts would appear; \\n is a line end, \\t a tab."""
    num_samples: int = 3
    """Number of samples. Each has the seed of the one before plus 1."""
    seed: Annotated[int | None, arg(metavar="INT"), OPTIONAL] = None
    """Random seed; the same seed gives the same text. Without it, a random one, which is printed."""
    device: Annotated[str, arg(metavar="{auto,cpu,mps,cuda,cuda:N}")] = "auto"
    """Device to generate on. auto: cpu for a small model; for a large one cuda, else mps, else cpu."""
    precision: Literal["auto", "fp16", "fp32"] = "auto"
    """Weights on CPUs: fp16 is up to twice as fast as fp32. auto: fp16 on CPUs."""
    checkpoint: Annotated[str, arg(metavar="MODEL"), OPTIONAL] = ""
    """Model to use: a run, a model file or an exported folder. Without it, the best model of the newest run."""

    def __post_init__(self) -> None:
        require_positive(self, "max_tokens", "num_samples")
        require(
            0 <= self.temperature < math.inf,
            f"--temperature {self.temperature}: must be at least 0 and finite; 0.5 is conservative, 1.0 creative",
            "temperature-out-of-range",
        )
        require(self.top_k >= 0, f"--top-k {self.top_k}: must be at least 0 (all tokens)", "top-k-out-of-range")
        require(
            0 < self.top_p <= 1, f"--top-p {self.top_p}: must be greater than 0 and at most 1", "top-p-out-of-range"
        )
        require(
            0 <= self.min_p <= 1, f"--min-p {self.min_p}: must be between 0 and 1; 0.05 is usual", "min-p-out-of-range"
        )
        require(
            0 < self.repetition_penalty < math.inf,
            f"--repetition-penalty {self.repetition_penalty}: must be greater than 0; 1 has no effect, 1.1 is mild",
            "repetition-penalty-out-of-range",
        )
        require(
            "" not in self.stop, "--stop: an empty text matches everywhere; give at least one character", "stop-empty"
        )
        require(
            self.seed is None or 0 <= self.seed < 2**63,
            f"--seed {self.seed}: must be at least 0 and below 2^63",
            "seed-out-of-range",
        )


@dataclass(frozen=True)
class OutputConfig:
    """Where prompts come from and how samples are printed."""

    prompt_file: Annotated[str, arg(metavar="FILE"), OPTIONAL] = ""
    """Read the prompt from this file; - is standard input."""
    interactive: Annotated[bool, OPTIONAL] = False
    """Read prompts line by line from the terminal and continue each."""
    no_stream: Annotated[bool, OPTIONAL] = False
    """Print each sample when it is complete, not while it is generated."""
    json: Annotated[bool, OPTIONAL] = False
    """Print one JSON object per sample."""

    def __post_init__(self) -> None:
        require(
            not (self.interactive and self.prompt_file),
            f"--interactive reads its prompts from the terminal: leave out --prompt-file {self.prompt_file}",
            "interactive-with-prompt-file",
        )


@dataclass(frozen=True)
class EvalConfig:
    """How the text is read and scored."""

    text_field: str = DataConfig.text_field
    """Name of the JSONL field or the CSV or Parquet column that holds the text."""
    encoding: Annotated[str, OPTIONAL] = DataConfig.encoding
    """Encoding of text files that are not UTF-8, such as cp1252.
    That of web pages and UTF-16 is recognized without it."""
    max_unpacked: Annotated[str, arg(metavar="SIZE"), OPTIONAL] = DataConfig.max_unpacked
    """Most that one compressed file may unpack to, such as 80GB."""
    batch_size: int = 32
    """Sequences scored at once."""
    device: Annotated[str, arg(metavar="{auto,cpu,mps,cuda,cuda:N}")] = "auto"
    """Device to compute on. auto: cuda, else mps, else cpu."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
