"""What all runs of a bench have in common: the model around the router, data, schedule, sizes.

Two runs may be compared if their settings are equal and they differ in case or seed alone. The
settings are written beside the results, and a folder takes no runs with others.
"""

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.errors import ConfigError
from moe_megatron.version import package_version

CAPACITY = 1.25
"""The capacity factor for which the share of assignments beyond it is told."""
_TIME_STEPS = 25
_TIME_CHARACTERS = 200_000
_PACKAGES = ("torch", "megatron-core")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """One training, but for router, experts and seed.

    Raises:
        ConfigError: A value is out of range.
    """

    SECTION: ClassVar[str] = "bench"

    steps: int = 300
    """Updates of each run."""
    batch_size: int = 8
    """Sequences of a batch, all of which are routed together."""
    sequence_length: int = 128
    """Tokens of a sequence."""
    learning_rate: float = 3e-3
    """Peak of the cosine schedule."""
    num_layers: int = 2
    """Transformer layers, all of them with experts."""
    hidden_size: int = 64
    """Width of the residual stream."""
    expert_hidden_size: int = 128
    """Inner width of an expert."""
    top_k: int = 2
    """Experts for each token; of routers that give tokens different numbers, what they aim at."""
    capacity_factor: float | None = None
    """Tokens that an expert accepts, as a multiple of an even share; null: nothing is dropped."""
    vocab_size: int = 1024
    """Entries of the demo tokenizer."""
    train_characters: int = 4_000_000
    """Of each domain, to train on."""
    held_out: int = 60
    """Documents of each domain that are not trained on."""
    held_out_characters: int = 1000
    """Of each such document, at most."""

    def __post_init__(self) -> None:
        conform(self)
        names = [it.name for it in dataclasses.fields(self)]
        positive = {"learning_rate", "capacity_factor"}
        checks.at_least(self, 1, *(name for name in names if name not in positive))
        checks.positive(self, *positive)
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"--hidden-size ({self.hidden_size}) must be a multiple of {self.num_heads}, the "
                "heads of attention; try 64, 128 or 256."
            )

    @property
    def num_heads(self) -> int:
        """Heads of attention, of 16 features each where that is possible."""
        return max(1, self.hidden_size // 16)

    @property
    def tokens(self) -> int:
        """Tokens that a run trains on."""
        return self.steps * self.batch_size * self.sequence_length

    def shortened(self) -> Self:
        """The same model and batches, with as few steps and as little text as a step time needs."""
        return dataclasses.replace(
            self,
            steps=min(self.steps, _TIME_STEPS),
            train_characters=min(self.train_characters, _TIME_CHARACTERS),
        )

    def to_plain(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self)


def versions() -> dict[str, str]:
    """The software whose change would make other numbers."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"moe_megatron": package_version(), "python": platform.python_version(), **found}
