"""AOTInductor: a package with the compiled program and the weights, which needs no Python model.

A package is a shared library: load none that you did not make, since it may do what you may.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_megatron.files import publishing
from moe_megatron.inference.compilation.backend import needs_output, register_backend
from moe_megatron.inference.compilation.compiled_model import CompiledModel, largest_difference
from moe_megatron.inference.compilation.plain_model import Logits, choose_experts
from moe_megatron.inference.compilation.shapes import ANY_SHAPE, example


@register_backend("aot_inductor", lambda output: needs_output("aot_inductor", output, ".pt2"))
def aot_inductor(model: Any, output: Path | None, optimize_routing: bool) -> CompiledModel:
    """Compile a forward pass into a package."""
    target = needs_output("aot_inductor", output, ".pt2")
    choose_experts(model, "grouped_mm")  # a loop over experts is no graph
    whole = Logits(model).eval()
    with torch.inference_mode():
        program = torch.export.export(whole, example(model), dynamic_shapes=(ANY_SHAPE,))
    with publishing(target) as partial:
        torch._inductor.aoti_compile_and_package(program, package_path=str(partial))
        package = torch._inductor.aoti_load_package(str(partial))

        def logits(ids: Tensor) -> Tensor:
            found: Tensor = package(ids.to(model.device))
            return found

        apart = largest_difference(logits, whole, model.config.vocab_size)
    return CompiledModel(backend="aot_inductor", logits=logits, path=target, difference=apart)
