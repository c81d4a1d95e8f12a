"""What makes Megatron faster on a CPU, and the one switch that turns it off.

With `MOE_MEGATRON_PLAIN=1` Megatron's own code runs in place of every accelerator: slower, but the
first thing to try when a number looks wrong. A comma-separated list of names turns off only those,
to find the one at fault. What Megatron needs in order to run on a CPU at all is in `emulation` and
stays on. Whoever enters an accelerator asks `enabled` first; tests count the entries in a run.
"""

import functools
import os
from typing import Literal

from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError

SWITCH = "MOE_MEGATRON_PLAIN"

Accelerator = Literal[
    "kernels",
    "attention",
    "rotary",
    "experts",
    "losses",
    "shared_memory",
    "reduce_scatter",
    "optimizer",
    "allocator",
]
ACCELERATORS: dict[Accelerator, str] = {
    "kernels": "routing, permutation, SwiGLU and combine weights in C",
    "attention": "causal attention without the masked half",
    "rotary": "rotary positions in one pass, of packed sequences too",
    "experts": "the experts of a process in one autograd function",
    "losses": "token losses in one pass over the logits",
    "shared_memory": "processes of one host exchange tensors without sockets",
    "reduce_scatter": "each rank receives and adds only the parts that it keeps",
    "optimizer": "AdamW in torch's fused kernel",
    "allocator": "freed memory stays in the process for the next step",
}
"""Name and description of each accelerator."""


def enabled(name: Accelerator) -> bool:
    """Whether an accelerator is in use.

    Raises:
        ConfigError: `MOE_MEGATRON_PLAIN` is neither 0, 1 nor a list of accelerators.
    """
    return name not in _switched_off(os.environ.get(SWITCH, ""))


@functools.cache
def _switched_off(value: str) -> frozenset[str]:
    words = {word.strip() for word in value.split(",")} - {"", "0"}
    if words == {"1"}:
        return frozenset(ACCELERATORS)
    if unknown := sorted(words - ACCELERATORS.keys()):
        raise ConfigError(
            f"{SWITCH} ({value}) must be 1, to switch off every accelerator, or a comma-separated "
            f"list of {join_words(list(ACCELERATORS))}; it must not contain {join_words(unknown)}."
        )
    return frozenset(words)
