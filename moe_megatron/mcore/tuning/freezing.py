"""Freezes the parameters that a run does not train, before Megatron wraps the model.

A frozen parameter requires no gradient. Megatron then gives it no gradient buffer and no optimizer
state, and neither updates nor weight decay touch it. What a frozen router moves without gradients,
its balancing bias and its state, is frozen with it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from moe_megatron.config import checks
from moe_megatron.config.adapter import is_of_adapter
from moe_megatron.config.finetune import FinetuneConfig
from moe_megatron.config.parameter_roles import ROLES, ParameterPlace
from moe_megatron.errors import ConfigError
from moe_megatron.mcore import world
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.tuning.gradient_flow import let_gradients_reach
from moe_megatron.mcore.tuning.places import placed_parameters
from moe_megatron.mcore.tuning.receipt import count_parameters


def freeze(
    chunks: list[Any],
    finetune: FinetuneConfig,
    say: Callable[[str], None] = lambda line: None,
    *,
    adapted: bool = False,
) -> list[Any]:
    """Freeze what is not trained; every rank must call it.

    Args:
        chunks: Megatron's model chunks of this rank, before DDP wraps them.
        finetune: What is trained.
        say: Called on rank 0 with lines on what is trained.
        adapted: The chunks have adapters. Those are trained; of all else, what `finetune` names,
            which is nothing unless somebody has chosen.

    Raises:
        ConfigError: A selector names no parameter of the model, or nothing is left to train.
    """
    placed = list(placed_parameters(chunks))
    _check_selectors(finetune, [place for place, _ in placed if not is_of_adapter(place.name)])
    for place, parameter in placed:
        parameter.requires_grad = is_of_adapter(place.name) or finetune.trains(
            place, adapted=adapted
        )
    for router in (it for chunk in chunks for it in chunk.modules()):
        if isinstance(router, MeasuredRouter) and not router.weight.requires_grad:
            _freeze_memory(router)
    let_gradients_reach(chunks, _lowest_trained_layer(placed))
    count = count_parameters(chunks)
    if not count.trained:
        raise ConfigError(
            f"nothing is left to train: finetune.train ({', '.join(finetune.train)}) is all in "
            f"finetune.freeze ({', '.join(finetune.freeze)}); name something else in "
            f"finetune.train, such as {checks.join_words(ROLES[:4])}."
        )
    if world.rank() == 0:
        say(str(count))
    return chunks


def _check_selectors(finetune: FinetuneConfig, places: list[ParameterPlace]) -> None:
    """Every selector must name a parameter on some rank."""
    selectors = list(finetune.selectors())
    found = "".join(str(int(any(map(it.matches, places)))) for _, it in selectors)
    everywhere = world.gather_texts(found)
    for number, (field, selector) in enumerate(selectors):
        if all(rank[number] == "0" for rank in everywhere):
            names = sorted({place.name for place in places})
            hint = checks.nearest(selector.what, names)
            hint = hint or f" The model's parameters are: {checks.first_few(names)}."
            raise ConfigError(f"{field} '{selector}' names no parameter of this model.{hint}")


def _freeze_memory(router: MeasuredRouter) -> None:
    """Keep what a router moves without gradients.

    Raises:
        ConfigError: Megatron has no switch for it.
    """
    if getattr(router, "qb_beta", None) is not None:
        raise ConfigError(
            "moe.load_balancing 'quantile_balancing' moves a bias of every router, which Megatron "
            "cannot stop; train the routers, too, or use a model with the router 'quantile'."
        )
    router.frozen_expert_bias = True  # Megatron's switch
    if router.state is not None:
        router.state.frozen = True


def _lowest_trained_layer(placed: list[tuple[ParameterPlace, torch.nn.Parameter]]) -> int | None:
    """The first layer of the whole model with a trained parameter on any rank."""
    trained = [it.layer for it, tensor in placed if tensor.requires_grad and it.layer is not None]
    none = 2**31
    lowest = torch.tensor(min(trained, default=none), device=world.device())
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return None if int(lowest) == none else int(lowest)
