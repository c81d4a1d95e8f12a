"""The environment variables of a run, which must be set before CUDA starts."""

import os

from moe_megatron.config import RunConfig
from moe_megatron.errors import ConfigError


def prepare_environment(config: RunConfig) -> None:
    """Set the variables on which Megatron insists, before CUDA starts.

    CUDA_DEVICE_MAX_CONNECTIONS=1: a single hardware queue keeps communication and computation in
    the order in which tensor and context parallelism issue them. Without these, a GPU is faster
    with more queues. Deterministic runs also fix the algorithms of NCCL, cuBLAS and Transformer
    Engine.

    Raises:
        ConfigError: The environment asks for an algorithm that is not deterministic.
    """
    if config.training.deterministic:
        from megatron.training.determinism import apply_determinism_env

        try:
            apply_determinism_env(os.environ)
        except AssertionError as error:
            raise ConfigError(
                f"training.deterministic does not fit the environment: {error} Unset the variable."
            ) from error
    if config.parallel.tensor_parallel_size * config.parallel.context_parallel_size > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
