"""Learning rates of roles, as overrides of Megatron's parameter groups.

Megatron's own mechanism: an override of `max_lr` and `min_lr` for parameters that a predicate
finds. The schedule is that of the run, so a role's rate is the same multiple of it at every step.
It does not know what is frozen.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.training import training as loop

from moe_megatron.config.finetune import FinetuneConfig
from moe_megatron.config.parameter_roles import Role, role_of
from moe_megatron.mcore.replaced import replaced


@contextmanager
def rates_of_roles(finetune: FinetuneConfig, learning_rate: float) -> Iterator[None]:
    """Build optimizers with the learning rates of roles that have their own, meanwhile.

    Args:
        finetune: The rates.
        learning_rate: The peak learning rate of all else.
    """
    factors = finetune.factors(learning_rate)
    original = loop.get_megatron_optimizer_config

    def get_megatron_optimizer_config(args: Any) -> tuple[Any, dict[ParamKey, Any]]:
        config, overrides = original(args)
        return config, {**(overrides or {}), **dict(_overrides(factors, config))}

    with replaced(loop, "get_megatron_optimizer_config", get_megatron_optimizer_config):
        yield


def _overrides(factors: Mapping[Role, float], config: Any) -> Iterator[tuple[ParamKey, Any]]:
    for role, factor in factors.items():
        named = ParamWithNamePredicate(name=f"role {role}", fn=partial(_is, role))
        rates = {"max_lr": config.lr * factor, "min_lr": config.min_lr * factor}
        yield ParamKey(with_name_predicate=named), rates


def _is(role: Role, parameter: Any, name: str) -> bool:
    if role == "embeddings" and getattr(parameter, "shared_embedding", False):
        return True  # also the copy of the last stage, whose name is the output layer's
    return role_of(name) == role and not (
        role == "output" and getattr(parameter, "shared_embedding", False)
    )
