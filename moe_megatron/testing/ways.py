"""The ways to train a router that must be the same everywhere, and what comes of one.

It knows neither how ranks are started nor which differences are wrong. Shapes: L layers with
experts, E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError
from moe_megatron.routing.description import Router
from moe_megatron.testing.jobs import few_steps

STEPS, BATCH, SEQUENCE = 3, 8, 32
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH),
    "training.precision": "fp32",
    "training.eval_interval": None,
    "data.sequence_length": SEQUENCE,
    "checkpoint.save_interval": None,
    "moe.aux_loss_coef": 0.01,
}
ONE, _NO_LOSS = "one process", {"moe.aux_loss_coef": 0.0}
_TENSOR, _EXPERT = "parallel.tensor_parallel_size", "parallel.expert_parallel_size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to train the model."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1
    like: str | None = ONE
    """The way whose losses, parameters and counts it must have."""
    same_batches: bool = True
    """Whether micro-batches hold the same tokens as those."""
    same_chance: bool = True
    """Whether what is drawn for a token is the same, too."""


WAYS: Mapping[str, Way] = {
    ONE: Way(like=None),
    "ep2": Way(ranks=2, overrides={_EXPERT: 2}),
    "tp2": Way(ranks=2, overrides={_TENSOR: 2}),
    "pp2": Way(ranks=2, overrides={"parallel.pipeline_parallel_size": 2}),
    "cp2": Way(ranks=2, overrides={"parallel.context_parallel_size": 2}, same_chance=False),
    "tp2-ep2": Way(ranks=4, overrides={_TENSOR: 2, _EXPERT: 2}),
    "recompute": Way(overrides={"training.recompute": "full"}),
    "whole": Way(overrides={**_NO_LOSS, "training.micro_batch_size": 4}, like=None),
    "accumulation": Way(overrides=_NO_LOSS, like="whole", same_batches=False, same_chance=False),
    "capacity": Way(overrides={"moe.capacity_factor": 1.0}, like=None),
}
"""All ways, by name. "accumulation" has two micro-batches for each one of "whole"."""
ENGINES = ("ep2", "tp2", "pp2", "cp2", "recompute", "accumulation", "capacity")
"""What `check_router(engines=True)` checks, beside one process and `MoEModel`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of one way, as rank 0 knows it."""

    losses: list[float]
    weights: dict[str, Tensor]
    """Of the whole model, after the last step."""
    tokens: list[int]
    counts: np.ndarray[Any, np.dtype[np.int64]]
    """What experts computed, [steps, L, E]."""
    assigned: np.ndarray[Any, np.dtype[np.int64]]
    """What the router asked for, [steps, L]."""
    chosen: int | None
    """Pairs of token and expert that the function returned; None if it is not asked, or of several
    ranks."""
    apart: float
    """The largest difference between logits of `MoEModel` and Megatron, in standard deviations."""
    padding: str | None
    """What is wrong with padding in `MoEModel`; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A router with its options."""

    router: Router
    top_k: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> dict[str, Any]:
        """What the configuration says of it."""
        code = self.router.code
        chosen = {"name": self.router.name, "sha256": code and code.sha256, **self.options}
        return {"moe.router": chosen, "moe.top_k": self.top_k}


type Found = dict[str, Trained]
"""What came of a router, by way."""


def ways_for(asked: Sequence[str]) -> list[str]:
    """The ways to train for what is asked, and for what that is compared with.

    Args:
        asked: Names of `ENGINES`, or of `WAYS`.

    Raises:
        ConfigError: There is no such name.
    """
    known = {*ENGINES, *WAYS}
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(
            f"there is no engine '{unknown[0]}' to check a router in; give engines=True for all, "
            f"or some of {join_words(sorted(known), 'and')}."
        )
    names = [ONE, *(name for name in asked if name in WAYS)]
    return list(dict.fromkeys([*names, *(like for it in names if (like := WAYS[it].like))]))
