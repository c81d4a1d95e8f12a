"""How many bits the weights of an expert have, and which of them share a scale."""

from collections.abc import Mapping
from dataclasses import dataclass

from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.policies import Counts, Key

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128, 256)
"""Those that torch's 4-bit product on a processor knows."""
ROWS = 16
"""Rows of a 4-bit matrix must be a multiple of it, for the same reason."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Whole numbers of some bits, with a scale for each group of them."""

    bits: int
    group_size: int | None = None
    """Consecutive weights of a row that share a scale; None: all of the row."""
    symmetric: bool = True
    """Whether 0 is in the middle of the numbers; else each group says which of them it is."""

    def __str__(self) -> str:
        groups = f" g{self.group_size}" if self.group_size else ""
        return f"int{self.bits}{groups}{'' if self.symmetric else ' asymmetric'}"

    def groups(self, columns: int) -> int:
        """Scales of a row."""
        return columns // self.group_size if self.group_size else 1


def precision(bits: int, group_size: int, *, symmetric: bool = True) -> Precision:
    """8 bits with a scale for each row, or 4 with one for each group, and a zero point or none.

    Raises:
        ConfigError: There is no such number of bits, or no such group.
    """
    if bits not in BITS:
        raise ConfigError(f"bits ({bits!r}) must be {join_words(BITS)}.")
    if bits == 8 and not symmetric:
        raise ConfigError(
            "8 bits are symmetric: with so many a zero point for each group changes next to "
            "nothing; take bits 4 with zero points, or leave them out."
        )
    if bits == 8:
        return Precision(8)
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"group_size ({group_size!r}) must be {join_words(GROUP_SIZES)}.")
    return Precision(4, group_size, symmetric)


def check_shape(shape: tuple[int, int], wanted: Precision) -> None:
    """Refuse matrices that groups do not fill.

    Raises:
        ConfigError: Rows are no multiple of the group size; the message names those that fit.
    """
    rows, columns = shape
    if wanted.bits == 8 and columns % 4 == 0:
        return
    fitting = [it for it in GROUP_SIZES if columns % it == 0]
    if not fitting or rows % ROWS:
        raise ConfigError(
            f"experts have matrices of {rows} rows of {columns} weights, and {wanted} needs "
            f"multiples of {ROWS} rows and {GROUP_SIZES[0]} weights; take 8 bits, or leave this "
            "model as it is."
        )
    if wanted.group_size not in fitting:
        raise ConfigError(
            f"group_size ({wanted.group_size}) does not divide the {columns} weights of a row of "
            f"this model's experts; give {join_words(fitting)}."
        )


def by_usage(
    keys: list[Key], counts: Counts, hot: Precision, cold: Precision, share: float
) -> Mapping[Key, Precision]:
    """The most used experts of each layer in more bits than the others.

    Args:
        keys: All experts.
        counts: Uses of each, as a routing profile has them.
        hot: Of the most used.
        cold: Of the others.
        share: How many of a layer's experts are hot, as a share, rounded.

    Raises:
        ConfigError: The share is none.
    """
    if not 0 < share < 1:
        raise ConfigError(f"hot_share ({share!r}) must be above 0 and below 1.")
    chosen: dict[Key, Precision] = {}
    for layer in sorted({layer for layer, _ in keys}):
        there = [it for it in keys if it[0] == layer]
        order = sorted(there, key=lambda it: (-counts.get(it, 0.0), it))
        most = round(share * len(there))
        chosen |= {it: hot if place < most else cold for place, it in enumerate(order)}
    return chosen
