"""inductor: calls of the model are compiled in the process, by torch's own compiler.

On CUDA decoding steps are recorded as CUDA graphs, too (`reduce-overhead`).
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from moe_megatron.inference.compilation.backend import needs_no_output, register_backend
from moe_megatron.inference.compilation.compiled_model import CompiledModel, largest_difference
from moe_megatron.inference.compilation.plain_model import Logits, choose_experts


@register_backend("inductor", lambda output: needs_no_output("inductor", output))
def inductor(model: Any, output: Path | None, optimize_routing: bool) -> CompiledModel:
    """Compile the model in place, as `torch.nn.Module.compile` does."""
    on_gpu = model.device.type == "cuda"
    if optimize_routing:
        # On GPUs decoding is faster where experts are gathered, which on CPUs is 5 to 30 times
        # slower; a loop over experts breaks the graph in each layer.
        choose_experts(model, "batched_mm" if on_gpu else "grouped_mm")
    return compiled_in_place(model, "inductor", mode="reduce-overhead" if on_gpu else None)


def compiled_in_place(model: Any, backend: str, **how: Any) -> CompiledModel:
    """A model whose calls are compiled, checked against what it computed before."""
    plain = type(model).forward
    whole = Logits(model)

    def expected(ids: Tensor) -> Tensor:
        logits: Tensor = plain(model, input_ids=ids.to(model.device), use_cache=False).logits
        return logits

    model.compile(backend=backend, dynamic=True, **how)

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = whole(ids.to(model.device))
        return found

    apart = largest_difference(logits, expected, model.config.vocab_size)
    return CompiledModel(backend=backend, logits=logits, decoder=model, difference=apart)
