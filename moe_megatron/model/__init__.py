"""The model in plain torch: it runs alone in one process, on a laptop or in a notebook.

Training at scale happens in Megatron, which takes the weights from here and gives them back
(`moe_megatron.mcore`); the maths is the same and the parameter names are stable (`language_model`).
Nothing here knows Megatron, files of text, or optimizers.
"""

from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.outputs import MoEOutput, RoutingInfo

__all__ = ["MoEModel", "MoEOutput", "RoutingInfo"]
