"""How a model learns from pairs of answers: the loss of preference optimisation, as numbers.

It does not know the data, which says itself that it holds pairs, nor how the loss is computed.
"""

from dataclasses import dataclass
from typing import Literal

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.errors import ConfigError

PREFERENCES = "preferences"
"""The format of pairs of answers, as `data.format` names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencesConfig:
    """The loss of a pair of answers (DPO, arXiv:2305.18290); other data does not look at it.

    Raises:
        ConfigError: If a value is out of range.
    """

    beta: float = 0.1
    """How close to stay to the reference, which is the model that the run starts with: a small
    beta lets go of it sooner."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid is DPO; ipo pulls the margin to 1 / (2 beta) (arXiv:2310.12036)."""

    label_smoothing: float = 0.0
    """Share of pairs whose answers may be the wrong way round, below 0.5; for sigmoid alone."""

    def __post_init__(self) -> None:
        conform(self)
        checks.positive(self, "beta")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"preferences.label_smoothing ({self.label_smoothing:g}) must be at least 0 and "
                "below 0.5, where chosen and rejected could not be told apart; try 0.1."
            )
        if self.label_smoothing and self.loss != "sigmoid":
            raise ConfigError(
                f"preferences.label_smoothing ({self.label_smoothing:g}) has no effect on the loss "
                f"{self.loss}; set it to 0, or preferences.loss to sigmoid."
            )
