"""Tells the monitor of this rank, which ft_launcher has started, what the rank does.

Megatron's own integration (`megatron.training.ft_integration`) opens and closes the sections
"setup", "step" and "checkpointing" in its loop. It reads the command line of the process, which is
ours, and does not know that a run may go back to a checkpoint; both are seen to here. How long a
section may take, and what follows, is ft_launcher's.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from megatron.training import ft_integration

from moe_megatron.config import RunConfig
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.mcore.loop.arguments import sys_argv
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.platform.resiliency import require_resiliency

MONITOR_VARIABLE = "FT_RANK_MONITOR_IPC_SOCKET"
"""By which ft_launcher tells its ranks where their monitor is."""

_FLAGS = ("--enable-ft-package", "--ft-num-warmup-iters", "0")
"""No step is left out: the first one, which compiles, may take as long as the others."""


def monitor_flags(config: RunConfig) -> tuple[str, ...]:
    """Megatron's flags for a rank that ft_launcher looks after; none for others.

    Raises:
        BackendUnavailableError: It is configured, but ft_launcher has not started this rank.
    """
    if config.recovery.restart != "ft_launcher":
        return ()
    require_resiliency("recovery.restart: ft_launcher")
    if MONITOR_VARIABLE not in os.environ:
        raise BackendUnavailableError(
            "recovery.restart is ft_launcher, which has not started this process; use moe-megatron "
            "train, or ft_launcher in place of torchrun, or set recovery.restart to elastic."
        )
    return _FLAGS


class Sections(Callback):
    """Begins the sections anew when the run goes back to a checkpoint."""

    def on_rollback_start(self) -> None:
        """Going back may take as long as starting."""
        client = ft_integration.get_rank_monitor_client()
        if client is None:
            return
        # A new connection closes whatever was open; `end_all_sections` of 0.6.0 does nothing.
        client.shutdown_workload_monitoring()
        client.init_workload_monitoring(num_warmup_iters=ft_integration._NUM_WARMUP_ITERS)
        client.start_section("setup")
        ft_integration._is_setup_section_open = True


@contextmanager
def sections_told(argv: Sequence[str]) -> Iterator[None]:
    """Have Megatron tell the monitor of its sections while the context is open, if there is one.

    Args:
        argv: Megatron's command line; with `monitor_flags` it needs `--save`, too.
    """
    original = ft_integration.setup
    state = {name: getattr(ft_integration, name) for name in _STATE}

    def setup() -> Any:
        if _FLAGS[0] not in argv:  # it would build the whole parser to find out
            return None
        with sys_argv(argv):
            return original()

    ft_integration.setup = setup
    try:
        yield
    finally:
        ft_integration.setup = original
        with suppress(Exception):  # the monitor may be gone; the process soon is, too
            ft_integration.shutdown()
        vars(ft_integration).update(state)


_STATE = (
    "_GLOBAL_RANK_MONITOR_CLIENT",
    "_is_setup_section_open",
    "_seen_checkpoints_cnt",
    "_seen_tr_iters_cnt",
    "_curr_eval_iter_idx",
)
"""Globals of the integration, which another run in this process must find as they were."""
