"""What a run says at its end if its routers have collapsed, and what to change.

By the last steps alone: routers that were uneven at first and have recovered are healthy.
"""

import numpy as np

from moe_megatron.config import RunConfig
from moe_megatron.config.checks import first_few
from moe_megatron.config.parameter_roles import ParameterPlace
from moe_megatron.run.history import History
from moe_megatron.telemetry.values.collapse import collapsed_layers
from moe_megatron.telemetry.values.expert_load import load_share

_BALANCING_COEF = 0.02
_BALANCING_STD = 0.05
_OF_FROZEN = (
    "Routers are frozen in this run, which keeps what it began with; to balance them, train them "
    "too: name router in finetune.train."
)


def collapse_warning(config: RunConfig, history: History) -> str:
    """One paragraph about the layers whose routers have collapsed; "" if none has."""
    if not history.recent:
        return ""
    first, last = history.recent[0], history.recent[-1]
    counts = np.sum([snapshot.tokens_per_expert for snapshot in history.recent], axis=0)
    found = collapsed_layers(counts, last.top_k)
    if not found.any():
        return ""
    layers = [str(layer) for layer, bad in zip(last.layers, found, strict=True) if bad]
    fullest = float(load_share(counts)[found].max())
    which = f"layer {layers[0]}" if len(layers) == 1 else f"layers {first_few(layers)}"
    even = 1 / last.num_experts
    return (
        f"the routers of {which} have collapsed onto few experts: in steps {first.step:,} to "
        f"{last.step:,} one of {last.num_experts} got {fullest:.0%} of a layer's assignments, "
        f"where {even:.0%} is even. Experts without tokens learn nothing. "
        f"{_remedy(config) if _trains_routers(config) else _OF_FROZEN}"
    )


def _trains_routers(config: RunConfig) -> bool:
    """Whether the router of any layer is trained."""
    adapted = config.adapter.on
    return any(
        config.finetune.trains(
            ParameterPlace(f"decoder.layers.{layer - 1}.mlp.router.weight", layer=layer),
            adapted=adapted,
        )
        for layer in config.architecture.moe_layers
    )


def _remedy(config: RunConfig) -> str:
    moe, std = config.moe, config.model.init_std
    if moe.load_balancing == "none":
        return (
            "Balance them: set moe.load_balancing to aux_loss, in Python "
            "load_balancing='auxiliary_loss'."
        )
    advice = []
    if moe.aux_loss_coef:
        better = max(_BALANCING_COEF, 2 * moe.aux_loss_coef)
        advice.append(f"raise moe.aux_loss_coef from {moe.aux_loss_coef:g} to {better:g}")
    if std < _BALANCING_STD and config.checkpoint.load is None:
        advice.append(
            f"start a small model from larger weights (model.init_std {_BALANCING_STD:g} in place "
            f"of {std:g})"
        )
    advice.append("lower the learning rate, or train longer if it has just begun")
    text = "; ".join(advice)
    return f"{text[0].upper()}{text[1:]}."
