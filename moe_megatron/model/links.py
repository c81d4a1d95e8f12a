"""The links between `MoEModel` and Megatron's checkpoints, with the tensors of router and experts.

`families` maps the tensors that every model has. What a router adds, in its gate or as its state,
only the router knows; what an expert consists of, only its class.
"""

from moe_megatron.config import Architecture
from moe_megatron.experts import expert_builder, expert_tensors
from moe_megatron.families.links import Link
from moe_megatron.families.moe_model import RouterTensors, model_links
from moe_megatron.routing import bind


def links_of(architecture: Architecture) -> list[Link]:
    """Every parameter and buffer of a `MoEModel`, as blocks of Megatron's matrices.

    Raises:
        ConfigError: There is no such router, or it has other options.
    """
    return model_links(architecture, router_tensors(architecture), _own_expert(architecture))


def router_tensors(architecture: Architecture) -> RouterTensors:
    """The tensors of the router of an MoE layer, beyond bias and expert bias."""
    moe = architecture.moe
    if moe.num_experts is None:
        return RouterTensors()
    route = bind(moe)
    gate = route.gate_tensors(moe.num_experts, architecture.model.hidden_size)
    state = route.router.state
    first = {} if state is None else state.first(moe.num_experts)
    return RouterTensors(
        weight=gate.pop("weight").shape,
        gate={name: parameter.shape for name, parameter in gate.items()},
        state={name: tuple(value.shape) for name, value in first.items()},
    )


def _own_expert(architecture: Architecture) -> dict[str, tuple[int, ...]] | None:
    """The tensors of an expert that is a module of its own; None: it is the model's MLP."""
    moe = architecture.moe
    builder = None if moe.num_experts is None else expert_builder(moe)
    if builder is None:
        return None
    return expert_tensors(builder, architecture.model.hidden_size, architecture.expert_hidden_size)
