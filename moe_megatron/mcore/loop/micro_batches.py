"""Numbers the micro-batches of a run, for routers that draw random numbers (`layers/drawing.py`).

They are numbered as one process would go through them, whichever data parallel rank has them, so
every layout draws the same for the same tokens.
"""

from typing import Any

import torch
from megatron.core import mpu
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.training import get_args

from moe_megatron.config import RunConfig
from moe_megatron.mcore.layers.drawing import hashed, seed_of
from moe_megatron.routing import bind

_SHARED = "data-parallel-rng"
"""The state that is the same on all tensor parallel ranks."""


class MicroBatchSeeds:
    """Counts the micro-batches of a step, and seeds torch's generator for each."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._counts: dict[int, int] = {}

    def begin(self, model: torch.nn.Module) -> None:
        """A model chunk is about to compute its next micro-batch of this step."""
        if not model.training:
            return
        args: Any = get_args()
        if args.curr_iteration != self._step:
            self._step, self._counts = args.curr_iteration, {}
        own = self._counts.get(id(model), 0)
        self._counts[id(model)] = own + 1
        # A step that is computed again has the same numbers.
        number = own % get_num_microbatches() * mpu.get_data_parallel_world_size()
        number += mpu.get_data_parallel_rank()
        _seed(hashed(args.seed, self._step, number, bits=31))


def _seed(micro_batch: int) -> None:
    """Seed the generator, and Megatron's states where they are of the same one, without CUDA."""
    torch.manual_seed(seed_of(micro_batch, "default"))
    if torch.cuda.is_available():
        return
    tracker, rank = get_cuda_rng_tracker(), mpu.get_tensor_model_parallel_rank()
    states = {}
    for name in tracker.get_states():
        stream = name if name == _SHARED else f"{name} {rank}"
        generator = torch.Generator().manual_seed(seed_of(micro_batch, stream))
        states[name] = generator.get_state()
    tracker.set_states(states)


def micro_batch_seeds(config: RunConfig) -> MicroBatchSeeds | None:
    """What seeds the micro-batches of a run; None if its router draws nothing."""
    if config.moe.num_experts is None or not bind(config.moe).router.random:
        return None
    return MicroBatchSeeds()
