"""What an hour of a device costs, as whoever starts the dashboard says."""

import math
from dataclasses import dataclass

from moe_megatron.errors import ConfigError

_MOST_LETTERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """An amount of money for an hour of one device, which each process of a run has.

    Raises:
        ConfigError: The amount is not positive, or the currency is no word.
    """

    per_hour: float
    currency: str = "USD"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.per_hour) and self.per_hour > 0):
            raise ConfigError(
                f"the price of an hour of a device must be above 0, not {self.per_hour}; give what "
                "one of them costs, as 2.50."
            )
        if not (self.currency.isalpha() and len(self.currency) <= _MOST_LETTERS):
            raise ConfigError(
                f"'{self.currency[:20]}' is no currency; give at most {_MOST_LETTERS} letters, "
                "as USD."
            )
