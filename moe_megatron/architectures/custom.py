"""An architecture of your own: a router and experts that you write."""

from typing import Any

from torch import nn

from moe_megatron import experts, routing
from moe_megatron.architectures.named import Fields, NamedArchitecture
from moe_megatron.config import ExpertConfig, RouterConfig
from moe_megatron.config.arguments import shown
from moe_megatron.errors import ConfigError
from moe_megatron.model.options import BALANCED


def _router(given: Any) -> Fields:
    if callable(given):
        return {"moe.router": routing.name_of(given)}
    return {"moe.router": routing.own_router(RouterConfig.conformed(given, "router"))}


def _expert(given: Any) -> Fields:
    if isinstance(given, type) and issubclass(given, nn.Module):
        return {"moe.expert": experts.name_of(given)}
    if isinstance(given, str | dict):
        return {"moe.expert": experts.own_expert(ExpertConfig.conformed(given, "expert_class"))}
    raise ConfigError(
        f"expert_class needs a class of modules, or the name of a kind of expert, not "
        f"{shown(given)}; give the class itself, which is built once for each expert."
    )


class CustomMoE(NamedArchitecture):
    """A model with your router and your experts, and else what `MoEModel` has.

        CustomMoE(router=route_nearest, expert_class=SineExpert, num_experts=16)

    A function or class that is not registered yet is, under its own name; other processes of a run
    must have imported its file, too, unless it is given as a function in a file.

    Args:
        router: A router's name, or a function in a file, "my_router.py:my_router"; a mapping of its
            name and options; or the function itself.
        expert_class: A class of modules from rows to rows (`moe_megatron.experts.Expert`); or the
            name of a kind of expert, or a class in a file, "my_expert.py:MyExpert"; or a mapping of
            its name and options.
        **options: As for `NamedArchitecture`.
    """

    table = {
        "model": {"init_std": BALANCED["init_std"]},
        "moe": {"aux_loss_coef": BALANCED["aux_loss_coef"]},
    }
    arguments = {"router": _router, "expert_class": _expert}
