"""Sorts the keyword arguments of `MoEModel` into `ModelConfig` and `MoEConfig`.

Every field of the two classes is an argument under its own name, except that `top_k` is called
`experts_per_token`. It has the default of the field, but for those in `BALANCED`. A router type is
the name of a router, or short for a router with certain options. `load_balancer` decides several
fields at once. The two classes check the values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from moe_megatron import routing
from moe_megatron.config import ExpertConfig, ModelConfig, MoEConfig, RouterConfig
from moe_megatron.config.arguments import meant, shown
from moe_megatron.config.checks import clipped, join_words, nearest
from moe_megatron.config.named import NOTES
from moe_megatron.config.own_code import names_code
from moe_megatron.errors import ConfigError
from moe_megatron.experts import own_expert
from moe_megatron.experts.kinds import name_of
from moe_megatron.routing import LoadBalancer, own_router, router_names

DEFAULT_TOP_K = 2
BALANCER = "load_balancer"
BALANCED = {"init_std": 0.05, "aux_loss_coef": 0.02}
"""Defaults with which the routers of small models balance within some dozen steps; with those of
the configuration they collapse (benchmarks/results has the comparison)."""

_MODEL_FIELDS = frozenset(field.name for field in fields(ModelConfig))
_MOE_FIELDS = frozenset(field.name for field in fields(MoEConfig))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Short:
    """The router and the options that a router type stands for."""

    router: str = "top_k"
    options: Mapping[str, Any] = field(default_factory=dict)
    top_k: int | None = None
    """The only number of experts per token that it allows; None allows any."""


SHORT = {
    # Switch scales its expert's output by the probability; otherwise the router could not learn.
    "switch": _Short(options={"pre_softmax": True}, top_k=1),
    "sigmoid": _Short(options={"score_function": "sigmoid"}),
}
"""Router types that are not names of routers."""


def build_configs(
    *, router_type: Any, experts_per_token: int | None, options: Mapping[str, Any]
) -> tuple[ModelConfig, MoEConfig]:
    """Build both configurations.

    Args:
        router_type: A router's name, a key of `SHORT`, a file and a function in it, or the function
            itself; None: what `router` among the options names, or "top_k".
        experts_per_token: `MoEConfig.top_k`; None for the router type's own number, or 2.
        options: Fields of either class; they override the options of the router type.

    Raises:
        ConfigError: A name or value is wrong, or contradicts the router type.
    """
    options = dict(options)
    router_type, own, options["router"] = _router(router_type, options.get("router", {}))
    balancer = options.pop(BALANCER, None)
    _refuse_unknown(options)
    if balancer is not None:
        balancer = LoadBalancer.of(balancer)
        router_type, experts_per_token = _balanced(
            balancer, router_type, experts_per_token, options
        )
    short = SHORT.get(router_type, _Short(router=router_type))
    top_k = (short.top_k or DEFAULT_TOP_K) if experts_per_token is None else experts_per_token
    if short.top_k is not None and top_k != short.top_k:
        raise ConfigError(
            f"router_type '{router_type}' sends each token to {short.top_k} expert, not "
            f"experts_per_token ({top_k}); leave experts_per_token out, or use 'top_k'."
        )
    router = {**short.options, **options["router"]}
    if router.pop("name", short.router) != short.router:
        raise ConfigError(
            f"router_type '{router_type}' is the router '{short.router}', but `router` names "
            "another one; leave router_type out, or give only options in `router`."
        )
    # A softmax over one chosen expert is always 1; routing.top_k explains and refuses it.
    if (short.router, top_k, router.get("score_function", "softmax")) == ("top_k", 1, "softmax"):
        router.setdefault("pre_softmax", True)
    if "expert" in options:
        expert = options["expert"]
        expert = name_of(expert) if callable(expert) else expert
        options["expert"] = own_expert(ExpertConfig.conformed(expert, "expert"))
    chosen = {
        "top_k": top_k,
        "router": replace(own, name=short.router, options=router),
    }
    values = {**BALANCED, **options, **chosen}
    return (
        ModelConfig(**{name: value for name, value in values.items() if name in _MODEL_FIELDS}),
        MoEConfig(**{name: value for name, value in values.items() if name in _MOE_FIELDS}),
    )


def _router(router_type: Any, given: Any) -> tuple[str, RouterConfig, dict[str, Any]]:
    """What router is meant, with its file loaded if it has one.

    Args:
        router_type: As in `build_configs`.
        given: The option `router`: a name, a function, or a mapping of options and perhaps a name.

    Returns:
        The router type; the choice, which notes the file; and the other options of the router.

    Raises:
        ConfigError: There is no such router, or it is given in another form.
    """
    given = routing.name_of(given) if callable(given) else given
    part = RouterConfig.read_part(given, "router")
    notes = {note: part.pop(note) for note in NOTES if note in part}
    by_name = router_type is None and "name" in part
    if router_type is None:
        router_type = part.pop("name", RouterConfig().name)
    elif callable(router_type):
        router_type = routing.name_of(router_type)
    known = [*router_names(), *SHORT]
    if not names_code(router_type) and router_type not in known:
        raise ConfigError(
            f"router_type must be {join_words([repr(name) for name in known])}, not "
            f"{shown(router_type)}.{nearest(str(router_type), known)} A router of your own is a "
            "function in a file, as in 'my_router.py:my_router', or the function itself."
        )
    own = own_router(RouterConfig(name=router_type, **notes))
    if by_name and own.name not in SHORT:
        part["name"] = own.name  # so that a balancing method with another router contradicts it
    return own.name, own, part


def _balanced(
    balancer: LoadBalancer, router_type: str, top_k: int | None, options: dict[str, Any]
) -> tuple[str, int | None]:
    """Put the fields of a balancer among the options.

    Args:
        balancer: What decides them.
        router_type: As in `build_configs`; "top_k" gives way to the router of the balancer.
        top_k: `experts_per_token`.
        options: Completed in place.

    Returns:
        Router type and number of experts for each token.

    Raises:
        ConfigError: An argument says otherwise.
    """
    short = SHORT.get(router_type, _Short(router=router_type))
    router = RouterConfig.read_part(options.get("router", {}), "router")
    fields = balancer.fields(router.get("name", short.router), given=options)
    wanted = fields.pop("router", None)
    if wanted is not None:
        if wanted.name != short.router and router_type != "top_k":
            raise ConfigError(
                f"load_balancer {shown(balancer.method)} routes with '{wanted.name}', not with "
                f"router_type {router_type!r}; leave one of the two out."
            )
        if router_type not in SHORT:
            router_type = wanted.name
        options["router"] = {**wanted.to_plain(), **router}
    number = fields.pop("top_k", None)
    given = {**options, "experts_per_token": top_k}
    for name, value in {**fields, "experts_per_token": number}.items():
        if value is not None and given.get(name, value) not in (None, value):
            raise ConfigError(
                f"{name} ({shown(given[name])}) contradicts load_balancer "
                f"{shown(balancer.method)}, which sets it to {shown(value)}; keep one of the two."
            )
    options |= fields
    return router_type, top_k or number


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options:
        if name == "top_k":
            raise ConfigError("MoEModel has no option 'top_k'; it is called experts_per_token.")
        if name not in _MODEL_FIELDS | _MOE_FIELDS:
            hint = meant(name, sorted({*_MODEL_FIELDS, *_MOE_FIELDS, BALANCER}))
            raise ConfigError(
                f"MoEModel has no option '{clipped(name)}'.{hint} Options are the fields of "
                "ModelConfig and MoEConfig."
            )
