"""Leaves out an optimizer that has nothing to update on any rank.

Megatron chains one optimizer for routed experts and one for all else. If only experts are trained,
the other one is a stub, which 0.19 cannot save or load. All ranks build the same parameter groups,
so that a stub is one everywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.training import training as loop

from moe_megatron.mcore.replaced import replaced


@contextmanager
def without_empty_optimizers() -> Iterator[None]:
    """Build optimizers of those parts alone that have something to update, meanwhile."""
    original = loop.get_megatron_optimizer

    def get_megatron_optimizer(*args: Any, **kwargs: Any) -> Any:
        optimizer = original(*args, **kwargs)
        parts = getattr(optimizer, "chained_optimizers", [])
        full = [part for part in parts if not part.is_stub_optimizer]
        return ChainedOptimizer(full) if 0 < len(full) < len(parts) else optimizer

    with replaced(loop, "get_megatron_optimizer", get_megatron_optimizer):
        yield
