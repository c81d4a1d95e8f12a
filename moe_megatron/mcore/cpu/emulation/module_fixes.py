"""Changes to individual Megatron modules that the view of torch cannot make.

Each fix receives its module right after the module was executed, on machines without CUDA only.
"""

import importlib
import logging
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from moe_megatron.mcore.cpu import fast
from moe_megatron.mcore.cpu.fast.cross_entropy import TokenLosses
from moe_megatron.mcore.cpu.fast.moe_functions import fix_moe_utils
from moe_megatron.mcore.cpu.fast.rotary import fix_rope_utils

_ASYNC_MODULE = "megatron.core.dist_checkpointing.strategies.async_utils"


def _fix_rng_tracker(module: ModuleType) -> None:
    """Keep the model-parallel random states in torch's CPU generator."""

    def get_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> Any:
        return torch.get_rng_state()

    def set_state(new_state: Any, device: Any = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    module._get_cuda_rng_state = get_state  # type: ignore[attr-defined]
    module._set_cuda_rng_state = set_state  # type: ignore[attr-defined]


def _fix_async_writer(module: ModuleType) -> None:
    """Give the background process that writes checkpoints the same view of torch as this one."""
    module.original_async_loop = module.PersistentAsyncCaller.async_loop  # type: ignore[attr-defined]
    module.PersistentAsyncCaller.async_loop = staticmethod(write_in_background)


def write_in_background(*args: Any) -> None:
    """Run Megatron's background writer in a fresh process, which has not imported Megatron yet.

    Megatron's own entry point would import Megatron with the real torch, fail to find a GPU and
    die, and training would wait for it forever. To unpickle this function, the process imports
    `moe_megatron.mcore`, which makes Megatron importable.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    importlib.import_module(_ASYNC_MODULE).original_async_loop(*args)


def _fix_cross_entropy(module: ModuleType) -> None:
    """Compute the losses in one pass over the logits where the vocabulary is not split."""
    original = module.vocab_parallel_cross_entropy

    def vocab_parallel_cross_entropy(
        vocab_parallel_logits: torch.Tensor,
        target: torch.Tensor,
        label_smoothing: float = 0.0,
        tp_group: Any = None,
    ) -> Any:
        if tp_group is None:
            tp_group = module.get_tensor_model_parallel_group()
        if label_smoothing or tp_group.size() > 1 or not fast.enabled("losses"):
            return original(vocab_parallel_logits, target, label_smoothing, tp_group)
        return TokenLosses.apply(vocab_parallel_logits, target)

    module.vocab_parallel_cross_entropy = vocab_parallel_cross_entropy  # type: ignore[attr-defined]


MODULE_FIXES: dict[str, Callable[[ModuleType], None]] = {
    "megatron.core.tensor_parallel.random": _fix_rng_tracker,
    "megatron.core.tensor_parallel.cross_entropy": _fix_cross_entropy,
    "megatron.core.transformer.moe.moe_utils": fix_moe_utils,
    "megatron.core.models.common.embeddings.rope_utils": fix_rope_utils,
    _ASYNC_MODULE: _fix_async_writer,
}
