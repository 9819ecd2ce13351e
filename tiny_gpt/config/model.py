"""The shape of the network."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from tiny_gpt.config.architectures import ARCHITECTURES, Architecture
from tiny_gpt.config.checks import require, require_positive

# The head width that recipes use: that of GPT-2 and of Qwen3's small models.
DEFAULT_HEAD_DIM = 64
# The name of a row of ARCHITECTURES. Type checkers need a literal type's values in the source, so they see a str.
if TYPE_CHECKING:
    ArchitectureName = str
else:
    ArchitectureName = Literal[tuple(ARCHITECTURES)]
_ARCHITECTURE_HELP = "Published design that the network follows; other tools can load all of them."
for _name, _traits in ARCHITECTURES.items():
    _ARCHITECTURE_HELP += f"\n{_name}: {_traits.summary}."


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network."""

    architecture: Annotated[ArchitectureName, arg(help=_ARCHITECTURE_HELP)] = "gpt2"
    n_layer: int = 4
    """Number of transformer blocks."""
    n_head: int = 8
    """Attention heads per transformer block."""
    d_model: int = 256
    """Width of the network: the length of each token's vector."""
    d_ff: int = 1024
    """Hidden width of each transformer block's feed-forward layer."""
    block_size: int = 128
    """Context length: the most tokens the model sees at once."""
    dropout: float = 0.15
    """Fraction of attention weights and feed-forward outputs set to zero at random in training; reduces overfitting."""
    head_dim: int = 0
    """Width of each attention head; 0 means d_model / n_head, the only choice of gpt2."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embeddings' frequencies. Models with a long context use a larger one."""

    def __post_init__(self) -> None:
        require_positive(self, "n_layer", "n_head", "d_model", "d_ff", "block_size")
        self._check_heads()
        require(
            0 <= self.dropout < 1, f"--dropout {self.dropout}: must be at least 0 and below 1", "dropout-out-of-range"
        )
        require(
            0 < self.rope_theta < math.inf,
            f"--rope-theta {self.rope_theta}: must be greater than 0 and finite; 10000 is usual",
            "rope-theta-out-of-range",
        )

    def _check_heads(self) -> None:
        require(
            self.head_dim >= 0,
            f"--head-dim {self.head_dim}: must be greater than 0, or 0 for d_model / n_head",
            "head-dim-out-of-range",
        )
        require(
            self.head_dim == 0 or self.traits.custom_head_dim,
            f"--head-dim {self.head_dim}: the heads of --architecture {self.architecture} are d_model / n_head wide; "
            "leave it out, or choose another architecture",
            "head-dim-unsupported",
        )
        require(
            self.head_dim > 0 or self.d_model % self.n_head == 0,
            f"--d-model {self.d_model} is not divisible by --n-head {self.n_head}; "
            f"try --d-model {self._nearest_width()}",
            "d-model-not-divisible",
        )
        if self.traits.positions == "rotary":
            given, advice = f"--d-model {self.d_model}", f"--d-model {self._nearest_width()}"
            if self.n_head > 1:
                given += f" with --n-head {self.n_head}"
            if self.head_dim:
                given, advice = f"--head-dim {self.head_dim}", f"--head-dim {self.head_dim + 1}"
            require(
                self.dim_per_head % 2 == 0,
                f"{given}: the head width is {self.dim_per_head}, but rotary positions (--architecture "
                f"{self.architecture}) rotate pairs of values, so it must be even; try {advice}",
                "head-dim-odd",
            )

    def _nearest_width(self) -> int:
        """The width nearest to d_model that fits this number of heads, each of an even width as some architectures
        need."""
        per_head = 2 if self.traits.positions == "rotary" else 1
        unit = self.n_head * per_head
        return max(1, round(self.d_model / unit)) * unit

    @property
    def traits(self) -> Architecture:
        """What distinguishes its architecture from others."""
        return ARCHITECTURES[self.architecture]

    @property
    def dim_per_head(self) -> int:
        """Width of each head's queries, keys and values."""
        return self.head_dim or self.d_model // self.n_head
