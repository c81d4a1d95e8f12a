"""The model in plain torch: it runs in a single process, on a laptop or in a notebook.

Training at scale happens in Megatron; `moe_megatron.mcore` copies the weights there and back. The
maths is the same, and the parameter names are stable (`language_model`). Nothing here knows
Megatron, text files or optimizers.
"""

from moe_megatron.model.gap import CausalGap, causal_gap
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.outputs import MoEOutput, RoutingInfo

__all__ = ["CausalGap", "MoEModel", "MoEOutput", "RoutingInfo", "causal_gap"]
