"""Cleans up what a run leaves behind in a process: Megatron's globals, its groups and the model."""

import gc
import multiprocessing
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from megatron.training import global_vars
from megatron.training import training as loop

from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback


def forget_run(groups_before: Sequence[dist.ProcessGroup]) -> None:
    """Reset Megatron's globals and close its groups; the world group stays for the next run.

    Megatron itself drops its groups without closing them, and every Gloo group keeps its threads.

    Args:
        groups_before: The process groups that existed before the run, which stay.
    """
    forget_globals()
    _end_data_workers()
    kept = {*groups_before, dist.group.WORLD}
    for group in world.process_groups():
        if group not in kept:
            dist.destroy_process_group(group)


def forget_globals() -> None:
    """Reset Megatron's globals; a second time, too, if the first was cut short."""
    handler = global_vars._GLOBAL_SIGNAL_HANDLER
    if handler is not None:
        handler.release()
    loop.destroy_global_state()
    destroy_moe_metrics_tracker()
    MTPLossLoggingHelper.tracker.clear()


def _end_data_workers() -> None:
    """End the workers of data loaders whose iterators are garbage that nobody has collected.

    They have inherited the handler with which a rank outlives SIGTERM until it has saved. So they
    outlive the SIGTERM of multiprocessing, too, which would wait for them when the process exits.
    """
    if multiprocessing.active_children():
        gc.collect()


class ModelRelease(Callback):
    """Frees the memory of a finished run's model.

    Megatron's data parallel wrapper hooks into autograd, and token dispatchers and the optimizer
    (which the configuration references) keep autograd graphs alive: reference cycles through C++,
    which Python's garbage collector cannot see.
    """

    def __init__(self) -> None:
        self._model: list[Any] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Remember the model."""
        self._model = model

    def release(self) -> None:
        """Break the reference cycles."""
        for chunk in self._model:
            getattr(chunk, "grad_accs", []).clear()
            for module in chunk.modules():
                vars(getattr(module, "token_dispatcher", module)).pop("probs", None)
            for parameter in chunk.parameters():
                vars(parameter).pop("main_param", None)
            chunk.config.grad_scale_func = None
        self._model = []
