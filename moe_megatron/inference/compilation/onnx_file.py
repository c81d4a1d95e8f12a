"""ONNX: a folder that onnxruntime and others compute, checked by onnxruntime."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_megatron.files import publishing
from moe_megatron.inference.compilation.backend import (
    needs_output,
    needs_packages,
    register_backend,
)
from moe_megatron.inference.compilation.compiled_model import CompiledModel, largest_difference
from moe_megatron.inference.compilation.plain_model import Logits, choose_experts
from moe_megatron.inference.compilation.shapes import ANY_SHAPE, example

FILE = "model.onnx"
"""In the folder; numbers of large models are in another file beside it."""
_ONE_FILE_BYTES = 1 << 30
_INSTALL = "pip install 'open-moe-trainer-lab[onnx]'"


def ready(output: Path | None) -> None:
    """What is needed: three packages, and a folder to write."""
    needs_packages("onnx", "onnx", "onnxscript", "onnxruntime", install=_INSTALL)
    needs_output("onnx", output)


@register_backend("onnx", ready)
def onnx_file(model: Any, output: Path | None, optimize_routing: bool) -> CompiledModel:
    """Write a forward pass as ONNX."""
    target = needs_output("onnx", output)
    choose_experts(model, "batched_mm")  # grouped products have no operator, loops are no graph
    whole = Logits(model).eval()
    with torch.inference_mode():
        program = torch.onnx.export(
            whole,
            example(model),
            dynamo=True,
            dynamic_shapes=(ANY_SHAPE,),
            input_names=["input_ids"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    nbytes = sum(it.nbytes for it in model.parameters())
    with publishing(target) as partial:
        partial.mkdir()
        program.save(str(partial / FILE), external_data=nbytes > _ONE_FILE_BYTES)
        logits = session_of(partial)
        apart = largest_difference(logits, whole, model.config.vocab_size)
    return CompiledModel(backend="onnx", logits=logits, path=target, difference=apart)


def session_of(folder: Path) -> Any:
    """A function from token ids [B, T] to logits [B, T, V], by onnxruntime on the processor."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])

    def logits(ids: Tensor) -> Tensor:
        (found,) = session.run(None, {"input_ids": ids.cpu().numpy()})
        return torch.from_numpy(found)

    return logits
