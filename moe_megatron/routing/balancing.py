"""The table of balancing methods: each is a name for certain fields of `MoEConfig`.

    register_balancing("two_groups", router="grouped", fields={"load_balancing": "aux_loss"})

From then on `LoadBalancer("two_groups")` and `MoETrainer(load_balancing="two_groups")` know it.
What computes is elsewhere: losses in `losses`, routers in their files, dropping in `capacity`. A
method that needs a computation of its own is a router with a state or a loss, and a row here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from moe_megatron.config import MoEConfig, RouterConfig, checks
from moe_megatron.config.arguments import shown
from moe_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancingMethod:
    """A way to balance load, as data."""

    name: str
    summary: str
    """What it does, in a few words."""
    router: RouterConfig | None
    """The router that it consists of; None: it goes with any."""
    fields: Mapping[str, Any]
    """Fields of `MoEConfig` that it decides."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `MoEConfig` that it proposes, and that a person may set otherwise."""


_METHODS: dict[str, BalancingMethod] = {}


def register_balancing(
    name: str,
    *,
    summary: str = "",
    router: str | Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> BalancingMethod:
    """Add a balancing method to the table.

    Args:
        name: What `LoadBalancer` calls it.
        summary: What it does, in a few words.
        router: The router that it consists of, as `moe.router` is written; None: any.
        fields: Fields of `MoEConfig` that it decides.
        defaults: Fields of `MoEConfig` that it proposes.

    Raises:
        ConfigError: The name is taken, or a field is unknown.
    """
    if name in _METHODS:
        raise ConfigError(
            f"there is already a balancing method '{name}' ({_METHODS[name].summary}); choose "
            "another name."
        )
    decided, proposed = dict(fields or {}), dict(defaults or {})
    for unknown in (decided.keys() | proposed.keys()) - _FIELDS:
        raise ConfigError(
            f"the balancing method '{name}' sets '{unknown}', which is no field of MoEConfig."
            f"{checks.nearest(unknown, _FIELDS)}"
        )
    wanted = None if router is None else RouterConfig.conformed(router, f"{name}.router")
    _METHODS[name] = BalancingMethod(
        name=name, summary=summary, router=wanted, fields=decided, defaults=proposed
    )
    return _METHODS[name]


_FIELDS = {it.name for it in fields(MoEConfig)}


def balancing_names() -> tuple[str, ...]:
    """Names of all methods, in the order of the table."""
    return tuple(_METHODS)


def find_balancing(name: object) -> BalancingMethod:
    """The method with this name, or with this value of `moe.load_balancing`.

    Raises:
        ConfigError: There is none.
    """
    if isinstance(name, str):
        if name in _METHODS:
            return _METHODS[name]
        for method in _METHODS.values():
            if method.router is None and method.fields.get("load_balancing") == name:
                return method
    values = [str(it.fields["load_balancing"]) for it in _METHODS.values() if it.fields]
    hint = checks.nearest(str(name), [*_METHODS, *values])
    raise ConfigError(
        f"there is no balancing method {shown(name)}.{hint} Methods are "
        f"{checks.join_words(balancing_names(), 'and')}; add your own with "
        "moe_megatron.routing.register_balancing."
    )


register_balancing(
    "auxiliary_loss",
    summary="a loss for each micro-batch (Switch, arXiv:2101.03961)",
    fields={"load_balancing": "aux_loss"},
)
register_balancing(
    "sequence_auxiliary_loss",
    summary="a loss for each sequence (DeepSeek-V2, arXiv:2405.04434)",
    fields={"load_balancing": "seq_aux_loss"},
)
register_balancing(
    "global_auxiliary_loss",
    summary="a loss with the counts of the global batch (arXiv:2501.11873)",
    fields={"load_balancing": "global_aux_loss"},
)
register_balancing(
    "switch",
    summary="one expert a token, a loss, and the first tokens up to a capacity (arXiv:2101.03961)",
    router={"name": "top_k", "pre_softmax": True},
    fields={"load_balancing": "aux_loss", "top_k": 1},
    defaults={"capacity_factor": 1.25, "drop_policy": "position"},
)
register_balancing(
    "gshard",
    summary="a second expert by chance, and a loss (arXiv:2006.16668)",
    router="gshard",
    fields={"load_balancing": "aux_loss", "top_k": 2},
)
register_balancing(
    "base_layers",
    summary="an assignment that is even in training (BASE, arXiv:2103.16716)",
    router="base_layers",
)
register_balancing(
    "sinkhorn",
    summary="scores made even before the choice, in training (arXiv:2202.01169)",
    router="sinkhorn",
)
register_balancing(
    "loss_free",
    summary="a bias that follows the load of the last step (arXiv:2408.15664)",
    router="loss_free",
)
register_balancing(
    "quantile",
    summary="a bias from quantiles of the scores, exact at once",
    router="quantile",
)
register_balancing(
    "none",
    summary="nothing: load goes where it goes",
    fields={"load_balancing": "none"},
)
