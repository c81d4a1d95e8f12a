"""Which rows of a router's tensors are those of experts.

A gate says which parameters it has for how many experts, and a router what it remembers; both are
asked for the experts of the model, and for twice as many. It reads no weights.
"""

from collections.abc import Mapping

from moe_megatron.config import MoEConfig
from moe_megatron.errors import CheckpointError

WEIGHT = "weight"
"""The tensor of every gate."""
_GATE, _STATE = "gate.", "state."
_BIASES = ("bias", "expert_bias")


def router_rows(
    moe: MoEConfig, hidden_size: int, saved: Mapping[str, tuple[int, ...]]
) -> Mapping[str, int]:
    """How many rows follow those of the experts, by the name of a tensor that has these.

    Args:
        moe: The experts, with all options of their router.
        hidden_size: Features of what enters the gate.
        saved: Shapes of what a checkpoint has of a router, by names such as "gate.noise".

    Raises:
        CheckpointError: A tensor has the experts elsewhere than in its first rows; or the router is
            code of the user's own that was not given, and has a gate of its own.
        ConfigError: There is no such router.
    """
    from moe_megatron.routing.registry import OWN_ROUTERS  # imports torch, which is slow

    known = OWN_ROUTERS.holds(moe.router)
    declared = _declared(moe, hidden_size) if known else _guessed(moe, saved)
    return dict.fromkeys((WEIGHT, *_BIASES), 0) | declared


def _declared(moe: MoEConfig, hidden_size: int) -> dict[str, int]:
    """By what the router says of itself."""
    from moe_megatron.routing import bind

    route, experts = bind(moe), moe.num_experts or 0
    numbers = experts, 2 * experts
    before, after = (
        {_of_gate(name): it.shape for name, it in route.gate_tensors(n, hidden_size).items()}
        for n in numbers
    )
    if (state := route.router.state) is not None:
        for n, shapes in zip(numbers, (before, after), strict=True):
            shapes |= {f"{_STATE}{name}": tuple(it.shape) for name, it in state.first(n).items()}
    for name, shape in before.items():
        if after[name] not in (shape, (shape[0] + experts, *shape[1:])):
            raise CheckpointError(
                f"{name} of the router '{moe.router.name}' has the shape {list(shape)} for "
                f"{experts} experts and {list(after[name])} for {2 * experts}; only what has a row "
                "for each expert, in front, can be changed in their number."
            )
    return {name: it[0] - experts for name, it in before.items() if it != after[name]}


def _guessed(moe: MoEConfig, saved: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Of a router whose code was not given: a state with as many rows as experts is of these."""
    experts = moe.num_experts
    if saved[WEIGHT][0] != experts or any(name.startswith(_GATE) for name in saved):
        raise CheckpointError(
            f"the router '{moe.router.name}' is code of its user's own, with a gate of its own, so "
            "that which rows are an expert's is not known without it. Load it in Python, with "
            f"own_router('PATH/{moe.router.name}') of moe_megatron.routing, and call "
            "change_experts of moe_megatron.checkpoint.resize there."
        )
    return {
        name: 0 for name, shape in saved.items() if name.startswith(_STATE) and shape[0] == experts
    }


def _of_gate(name: str) -> str:
    """The name under which a parameter of a gate is saved."""
    return name if name == WEIGHT else f"{_GATE}{name}"
