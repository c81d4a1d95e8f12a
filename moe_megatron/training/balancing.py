"""How a trainer's arguments about balancing become fields of its configuration.

Losses, capacity and noise are a matter of training. The router and the number of experts for each
token are the model's: here they are compared, and never changed.
"""

from collections.abc import Sequence
from typing import Any

from moe_megatron.config import MoEConfig
from moe_megatron.config.arguments import real, shown
from moe_megatron.errors import ConfigError
from moe_megatron.routing import LoadBalancer, resolve

Balancing = str | Sequence[str] | LoadBalancer

Z_LOSS = 0.01
"""What a trainer's `router_z_loss_coef` is if nobody says otherwise."""


def balancing_fields(
    given: Balancing | None, moe: MoEConfig, z_loss_coef: float, aux_loss_coef: float | None
) -> dict[str, Any]:
    """The fields of the configuration by dotted name.

    Args:
        given: A balancer, or the name or names of methods; None: that of the model.
        moe: That of the model.
        z_loss_coef: `router_z_loss_coef` of the trainer; if it is `Z_LOSS`, a balancer may say
            otherwise.
        aux_loss_coef: That of the trainer, or None.

    Raises:
        ConfigError: Something is given twice, or the model has another router or `top_k`.
    """
    balancer = LoadBalancer.of(moe.load_balancing if given is None else given)
    fields = balancer.fields(moe.router.name)
    _check_model(balancer, fields, moe)
    own = {
        "aux_loss_coef": None
        if aux_loss_coef is None
        else real("aux_loss_coef", aux_loss_coef, example=0.01),
        "z_loss_coef": real("router_z_loss_coef", z_loss_coef, example=0.01),
    }
    for name, value in own.items():
        if value is None or (name in fields and name == "z_loss_coef" and value == Z_LOSS):
            continue
        if fields.setdefault(name, value) != value:
            raise ConfigError(
                f"{name} is given twice, as {value} to the trainer and as {fields[name]} to its "
                "LoadBalancer; keep one of them."
            )
    return {f"moe.{name}": value for name, value in fields.items()}


def _check_model(balancer: LoadBalancer, fields: dict[str, Any], moe: MoEConfig) -> None:
    """Take out of `fields` what the model must have, if it has it."""
    method = shown(balancer.method)
    remedy = f"build the model with MoEModel(..., load_balancer={method})"
    router, top_k = fields.pop("router", None), fields.pop("top_k", None)
    if router is not None:
        found = resolve(moe).router
        differing = {
            name: value for name, value in router.options.items() if found.option(name) != value
        }
        if router.name != found.name or differing:
            needed = f"'{router.name}'" + (f" with {differing}" if differing else "")
            raise ConfigError(
                f"load_balancing {method} needs the router {needed}, and this model routes with "
                f"'{found.name}'; {remedy}."
            )
    if top_k is not None and top_k != moe.top_k:
        raise ConfigError(
            f"load_balancing {method} sends each token to {top_k} expert(s), and this model to "
            f"{moe.top_k}; {remedy}."
        )
