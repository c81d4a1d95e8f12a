"""From the configuration of a run to its recovery: which policies judge it, within which bounds."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from moe_megatron.config import RecoveryConfig, RunConfig
from moe_megatron.config.masked_experts import read_masked
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.loop.stopping import Stopping
from moe_megatron.mcore.recovery.expert_failure import ExpertFailure
from moe_megatron.mcore.recovery.guard import Bounds, StepGuard
from moe_megatron.mcore.recovery.nonfinite import NonFinite
from moe_megatron.mcore.recovery.policy import Policy
from moe_megatron.mcore.recovery.rollback import RollBack
from moe_megatron.mcore.recovery.spikes import LossSpikes
from moe_megatron.mcore.recovery.watchdog import Watchdog


def configured_policies(
    config: RunConfig, *, checkpoints: Path | None, loaded: Path | None, run_dir: Path | None
) -> list[Policy]:
    """The policies of a run, in the order in which they are asked.

    Args:
        config: The run.
        checkpoints: Folder in which the run saves; None if it saves nothing.
        loaded: The checkpoint that the run loads; None if it loads none.
        run_dir: Folder of the run, for its journal.
    """
    recovery, policies = config.recovery, list[Policy]()
    masks = recovery.expert_failure == "mask"
    if config.routed_layers and (masks or (loaded is not None and read_masked(loaded))):
        policies.append(
            ExpertFailure(
                config.moe,
                config.routed_layers,
                checkpoints=checkpoints,
                loaded=loaded,
                run_dir=run_dir,
                masks=masks,
                repeats=recovery.repeat_nonfinite,
                returning=recovery.restore_experts,
            )
        )
    policies.append(NonFinite(recovery.on_nonfinite, repeats=recovery.repeat_nonfinite))
    if recovery.on_spike != "ignore":
        policies.append(
            LossSpikes(
                recovery.on_spike,
                window=recovery.spike_window,
                deviations=recovery.spike_deviations,
                checkpoints=checkpoints,
                loaded=loaded,
            )
        )
    return policies


def number_masked(policies: Sequence[Policy]) -> Callable[[], tuple[int, ...]]:
    """The function that gives the number of masked experts of each layer; () for none."""
    return next((it.number_masked for it in policies if isinstance(it, ExpertFailure)), tuple)


def configured_watchdogs(
    config: RecoveryConfig, run_dir: Path | None, phase: Callable[[], str]
) -> list[Watchdog]:
    """The watchdog of a run, if it has a folder; `phase` gives the phase in which the loop is."""
    if run_dir is None:
        return []
    # A process alone waits for nobody, but perhaps for a debugger: it is not ended.
    # The monitors of ft_launcher end what hangs, a little later.
    ends = config.end_hangs and world.size() > 1 and config.restart != "ft_launcher"
    return [Watchdog(run_dir, seconds=config.hang_seconds, ends=ends, phase=phase)]


def guarded(
    config: RecoveryConfig,
    callbacks: Sequence[Callback],
    rollback: RollBack,
    stopping: Stopping,
    run_dir: Path | None,
) -> AbstractContextManager[None]:
    """Guard the steps of Megatron's loop.

    Args:
        config: Bounds of what the run may do by itself.
        callbacks: Those of the run; the policies among them judge its steps, in their order.
        rollback: The way back.
        stopping: Ends a step that takes long when the run is asked to stop.
        run_dir: Folder of the run; None writes no journal.
    """
    guard = StepGuard(
        [callback for callback in callbacks if isinstance(callback, Policy)],
        Bounds(skips=config.max_skips, rollbacks=config.max_rollbacks),
        callbacks=callbacks,
        rollback=rollback,
        stopping=stopping,
        run_dir=run_dir,
    )
    return guard.installed()
