"""What `MoEModel` computes beyond the fields of its configuration: a few Megatron flags.

Published families need them, and they keep Megatron's names, so that training passes them on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from moe_megatron.errors import ConfigError

Flags = Mapping[str, Any]

QKV_BIAS = "add-qkv-bias"
SHARED_EXPERT_GATE = "moe-shared-expert-gate"
ROTARY_PERCENT = "rotary-percent"
COMPUTED = (QKV_BIAS, SHARED_EXPERT_GATE, ROTARY_PERCENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """The flags, as a model uses them."""

    qkv_bias: bool = False
    """Queries, keys and values have biases (Qwen2)."""
    shared_expert_gate: bool = False
    """A gate weighs the shared expert (Qwen2-MoE)."""
    rotary_fraction: float = 1.0
    """Part of each head that rotary positions turn (GLM-4.5: half)."""

    @classmethod
    def from_flags(cls, flags: Flags) -> Self:
        """Read Megatron flags.

        Raises:
            ConfigError: One of them is not computed here, or has no sensible value.
        """
        unknown = [f"--{name}" for name in flags if name not in COMPUTED]
        if unknown:
            raise ConfigError(
                f"MoEModel does not compute {', '.join(unknown)}; of Megatron's flags it knows "
                f"{', '.join(f'--{name}' for name in COMPUTED)}."
            )
        fraction = flags.get(ROTARY_PERCENT, 1.0)
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise ConfigError(f"--{ROTARY_PERCENT} must be in (0, 1], not {fraction!r}.")
        return cls(
            qkv_bias=bool(flags.get(QKV_BIAS)),
            shared_expert_gate=bool(flags.get(SHARED_EXPERT_GATE)),
            rotary_fraction=float(fraction),
        )


NOTHING = Extras()
