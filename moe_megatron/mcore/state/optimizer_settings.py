"""Lets a run go on with other optimizer settings than those it was saved with.

Megatron looks a parameter group of a checkpoint up by its learning rates and weight decay, so that
it finds none once one of them has changed, and then takes betas and epsilon from the file without a
word. Here the configuration wins: of the saved groups only their number of steps is used. The
schedule counts sequences; its position is moved where a batch now holds more or fewer of them.

It does not know how the tensors of an optimizer are stored.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

_HYPER = "optimizer"
_GROUPS = "param_groups"
_STEP = "step"

State = dict[Any, Any]


@contextmanager
def configured_settings(batch_growth: Fraction = Fraction(1)) -> Iterator[None]:
    """Load optimizers and schedules with the settings of this run, meanwhile.

    Args:
        batch_growth: Sequences of a global batch, divided by those when the checkpoint was saved.
    """
    load_optimizers = ChainedOptimizer.load_state_dict
    load_schedule = OptimizerParamScheduler.load_state_dict

    def optimizers(self: Any, state_dict: State | list[State]) -> None:
        chained = self.chained_optimizers
        if len(chained) == 1:
            load_optimizers(self, _configured(chained[0], state_dict))
            return
        parts = (
            [part for _, part in sorted(state_dict.items())]
            if isinstance(state_dict, dict)
            else state_dict
        )
        if len(parts) == len(chained):  # else Megatron says what is wrong
            state_dict = list(map(_configured, chained, parts))
        load_optimizers(self, state_dict)

    def schedule(self: Any, state_dict: State) -> None:
        moved = int(state_dict["num_steps"] * batch_growth)
        load_schedule(self, {**state_dict, "num_steps": moved})

    ChainedOptimizer.load_state_dict = optimizers
    OptimizerParamScheduler.load_state_dict = schedule
    try:
        yield
    finally:
        ChainedOptimizer.load_state_dict = load_optimizers
        OptimizerParamScheduler.load_state_dict = load_schedule


def _configured(optimizer: Any, state: Any) -> Any:
    """The state of one optimizer with this run's parameter groups."""
    if getattr(optimizer, "is_stub_optimizer", False):
        return state
    ours = optimizer.optimizer.state_dict()[_GROUPS]
    if _HYPER in state:
        groups = configured_groups(ours, state[_HYPER][_GROUPS])
        return {**state, _HYPER: {**state[_HYPER], _GROUPS: groups}}
    return {**state, _GROUPS: configured_groups(ours, state[_GROUPS])}


def configured_groups(ours: list[Mapping[str, Any]], saved: list[Mapping[str, Any]]) -> list[State]:
    """This run's parameter groups, after as many steps as the saved ones.

    Args:
        ours: Groups of torch's optimizer, with the numbers of their parameters.
        saved: Those of the checkpoint, in any order and number.
    """
    steps = [{_STEP: group[_STEP]} for group in saved if _STEP in group]
    return [{**group, **(steps[0] if steps else {})} for group in ours]
