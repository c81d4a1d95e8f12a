"""TensorRT: calls of the model are compiled by NVIDIA's `torch_tensorrt`, on its GPUs."""

from pathlib import Path
from typing import Any

import torch

from moe_megatron.errors import ConfigError
from moe_megatron.inference.compilation.backend import (
    needs_no_output,
    needs_packages,
    register_backend,
)
from moe_megatron.inference.compilation.compiled_model import CompiledModel
from moe_megatron.inference.compilation.inductor import compiled_in_place
from moe_megatron.inference.compilation.plain_model import choose_experts


def ready(output: Path | None) -> None:
    """What is needed: a CUDA device and the package."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "the backend 'tensorrt' needs a CUDA device, and none was found; take 'inductor' here."
        )
    needs_packages("tensorrt", "torch_tensorrt", install="pip install torch-tensorrt")
    needs_no_output("tensorrt", output)


@register_backend("tensorrt", ready)
def tensorrt(model: Any, output: Path | None, optimize_routing: bool) -> CompiledModel:
    """Compile the model in place; what TensorRT has no operator for stays torch's."""
    import torch_tensorrt  # noqa: F401  # registers itself with torch.compile

    if optimize_routing:
        choose_experts(model, "batched_mm")
    return compiled_in_place(model.to("cuda"), "torch_tensorrt")
