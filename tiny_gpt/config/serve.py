"""How a server of models shares the machine among requests, and what it refuses."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from tiny_gpt.config.checks import require_positive
from tiny_gpt.config.sampling import SampleConfig


@dataclass(frozen=True)
class ServeConfig:
    """How requests share the machine, and what is refused."""

    max_batch: int = 32
    """Texts written at the same time; fewer where memory is short. Others wait."""
    max_queue: int = 128
    """Requests that may wait for their turn. More are refused with status 429."""
    max_request_tokens: int = 16384
    """Tokens that one request may ask for, over all its texts."""
    request_timeout: float = 600.0
    """Seconds after which a request is ended, its wait included."""
    chat_format: Literal["text", "dialogue"] = "text"
    """How a conversation becomes a prompt.
    text: one text that the turns write together.
    dialogue: lines that begin with User: and Assistant:."""
    device: Annotated[str, arg(metavar="{auto,cpu,mps,cuda,cuda:N}")] = SampleConfig.device
    """Device to generate on. auto: cpu for a small model; for a large one cuda, else mps, else cpu."""
    precision: Literal["auto", "fp16", "fp32"] = SampleConfig.precision
    """Weights on CPUs: fp16 is up to twice as fast as fp32. auto: fp16 on CPUs."""

    def __post_init__(self) -> None:
        require_positive(self, "max_batch", "max_queue", "max_request_tokens", "request_timeout")
