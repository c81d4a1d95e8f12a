"""What is timed: the models that users give, and the dense one that they are compared with."""

from collections.abc import Mapping
from typing import Any

from moe_megatron.errors import ConfigError
from moe_megatron.inference.compilation.compiled_model import CompiledModel
from moe_megatron.inference.compilation.plain_model import transformers_model
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.timing.decoding import Timed
from moe_megatron.inference.timing.weight_bytes import dense_twin, weights_of

DENSE = "dense"


def timed_models(models: Mapping[str, Any], *, dense: bool) -> tuple[list[Timed], str | None]:
    """The models by name, and the name of the one that others are compared with.

    Raises:
        CheckpointError: A model cannot be read.
        ConfigError: There is none, or one cannot decode or has no dense twin.
    """
    if not models:
        raise ConfigError("models ({}) must have one or more, such as {'mine': 'my_model'}.")
    if dense and DENSE in models:
        raise ConfigError(f"models has a {DENSE!r} of its own; rename it, or give dense=False.")
    found = [_timed(name, it) for name, it in models.items()]
    if not dense:
        return found, None
    with_experts = next((it for it in found if it.weights and it.weights.experts), None)
    if with_experts is None:
        raise ConfigError(
            "no model keeps its experts in memory, so that there is none to make a dense model "
            "of; add a transformers model or its folder, or give dense=False."
        )
    twin: Any = dense_twin(with_experts.call)
    return [Timed(DENSE, twin, twin.config, weights_of(twin)), *found], DENSE


def _timed(name: str, given: Any) -> Timed:
    if isinstance(given, OptimizedMoEModel):  # what it reads is its cache's to say
        return Timed(name, given, given.model.config)
    if isinstance(given, CompiledModel):
        if given.decoder is None:
            raise ConfigError(
                f"{name!r} was compiled with {given.backend!r} into a file without keys and "
                "values, and decoding is timed; leave it out."
            )
        given = given.decoder
    model: Any = transformers_model(given)
    return Timed(name, model, model.config, weights_of(model))
