"""What compilers are told of a model's input."""

from typing import Any

from torch import Tensor
from torch.export import Dim

from moe_megatron.inference.compilation.compiled_model import TRACED, example_ids

ANY_SHAPE = {0: Dim("batch", min=1, max=4096), 1: Dim("tokens", min=1, max=1 << 20)}
"""Token ids have any number of rows and any length."""


def example(model: Any) -> tuple[Tensor]:
    """Token ids to trace the model with."""
    return (example_ids(TRACED, model.config.vocab_size).to(model.device),)
