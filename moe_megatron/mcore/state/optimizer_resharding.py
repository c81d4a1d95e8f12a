"""Lets an optimizer state move between layouts with and without expert parallelism.

With expert parallelism Megatron chains two optimizers, one for the experts and one for the rest;
without it, one optimizer holds both. The tensors of a fully reshardable checkpoint fit both cases,
but the small common part (hyper-parameters and step count of each parameter group) is stored in the
structure of the run that saved it, and Megatron 0.19 refuses a different number of optimizers. This
module converts the common part to the structure of the run that loads it.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.optimizer.optimizer import ChainedOptimizer, param_group_identifier_keys

from moe_megatron.mcore.replaced import replaced

_TENSORS = "param_state"
_HYPER = "optimizer"
_GROUPS = "param_groups"
_EXPERT = "is_expert_parallel"

State = dict[Any, Any]


@contextmanager
def resharding_optimizer_states() -> Iterator[None]:
    """Make `ChainedOptimizer.load_state_dict` accept states of either structure, meanwhile."""
    original = ChainedOptimizer.load_state_dict

    def load_state_dict(self: Any, state_dict: State | list[State]) -> None:
        if isinstance(state_dict, dict):
            state_dict = reshape_state(state_dict, len(self.chained_optimizers))
        original(self, state_dict)

    with replaced(ChainedOptimizer, "load_state_dict", load_state_dict):
        yield


def reshape_state(state: State, num_optimizers: int) -> State:
    """Convert the common part of a loaded state to the structure of the optimizers that load it.

    Args:
        state: Tensors in the structure of the loading run, the common part in that of the saving
            run: at the top level for a single optimizer, under 0, 1, ... for chained ones.
        num_optimizers: Number of optimizers of the loading run.

    Returns:
        The state with its common part where the loading run looks for it.
    """
    tensors = {key: value for key, value in state.items() if key == _TENSORS}
    chained = {key: value for key, value in state.items() if isinstance(key, int)}
    single = {key: value for key, value in state.items() if key not in {*tensors, *chained}}
    if num_optimizers == 1 and chained:
        saved = [part for _, part in sorted(chained.items()) if _HYPER in part]
        param_groups = _for_all_parameters([part[_HYPER][_GROUPS] for part in saved])
        return {**saved[0], **tensors, _HYPER: {**saved[0][_HYPER], _GROUPS: param_groups}}
    if num_optimizers > 1 and single:
        param_groups = _for_experts_too(single[_HYPER][_GROUPS])
        common = {**single, _HYPER: {**single[_HYPER], _GROUPS: param_groups}}
        return {index: {**state.get(index, {}), **common} for index in range(num_optimizers)}
    return state


def _for_all_parameters(groups_of_optimizers: list[list[State]]) -> list[State]:
    """The parameter groups of all optimizers, with experts treated as ordinary parameters."""
    param_groups: dict[Any, State] = {}
    for group in itertools.chain.from_iterable(groups_of_optimizers):
        plain = {**group, _EXPERT: False}
        param_groups.setdefault(tuple(plain.get(key) for key in param_group_identifier_keys), plain)
    return list(param_groups.values())


def _for_experts_too(param_groups: list[State]) -> list[State]:
    """Each group twice: once for ordinary parameters, once for experts."""
    return [{**group, _EXPERT: expert} for expert in (False, True) for group in param_groups]
