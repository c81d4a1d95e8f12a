"""The keyword arguments of `MoEModel`, sorted into `ModelConfig` and `MoEConfig`.

Every field of the two classes is an argument under its own name; a router type is a short name for
a few of them. The classes check the values.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import ConfigError

ROUTER_TYPES: dict[str, dict[str, Any]] = {
    "top_k": {"router_score_function": "softmax"},
    # Switch scales the one expert's output by its probability, or the router could not learn.
    "switch": {"router_score_function": "softmax", "top_k": 1, "pre_softmax": True},
    "sigmoid": {"router_score_function": "sigmoid"},
    "sparse_mixer": {"router_algorithm": "sparse_mixer"},
}
DEFAULT_TOP_K = 2

_MODEL_FIELDS = frozenset(field.name for field in fields(ModelConfig))
_MOE_FIELDS = frozenset(field.name for field in fields(MoEConfig))


def build_configs(
    *, router_type: str, experts_per_token: int | None, options: Mapping[str, Any]
) -> tuple[ModelConfig, MoEConfig]:
    """Make both configurations.

    Args:
        router_type: A key of `ROUTER_TYPES`.
        experts_per_token: `MoEConfig.top_k`; None for the router's own number, or 2.
        options: Fields of either class; those of the router type are defaults for them.

    Raises:
        ConfigError: A name or value is wrong, or contradicts the router type.
    """
    if router_type not in ROUTER_TYPES:
        raise ConfigError(
            f"router_type must be {join_words([repr(name) for name in ROUTER_TYPES])}, "
            f"not {router_type!r}.{nearest(str(router_type), ROUTER_TYPES)}"
        )
    _refuse_unknown(options)
    router = ROUTER_TYPES[router_type]
    top_k = router.get("top_k", DEFAULT_TOP_K) if experts_per_token is None else experts_per_token
    if top_k != router.get("top_k", top_k):
        raise ConfigError(
            f"router_type {router_type!r} sends each token to {router['top_k']} expert, not "
            f"experts_per_token ({top_k}); leave experts_per_token out, or use 'top_k'."
        )
    values = {**router, **options, "top_k": top_k}
    # A softmax over one chosen expert is always 1; MoEConfig explains and refuses it.
    if top_k == 1 and values.get("router_score_function") == "softmax":
        values.setdefault("pre_softmax", True)
    return (
        ModelConfig(**{name: value for name, value in values.items() if name in _MODEL_FIELDS}),
        MoEConfig(**{name: value for name, value in values.items() if name in _MOE_FIELDS}),
    )


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options:
        if name == "top_k":
            raise ConfigError("MoEModel has no option 'top_k'; it is called experts_per_token.")
        if name not in _MODEL_FIELDS | _MOE_FIELDS:
            hint = nearest(name, _MODEL_FIELDS | _MOE_FIELDS)
            raise ConfigError(
                f"MoEModel has no option '{name}'.{hint} Options are the fields of ModelConfig "
                "and MoEConfig."
            )
