"""From the configuration of a run to its recovery: which policies judge it, within which bounds."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from moe_megatron.config import RecoveryConfig
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.recovery.guard import Bounds, StepGuard
from moe_megatron.mcore.recovery.nonfinite import NonFinite
from moe_megatron.mcore.recovery.policy import Policy
from moe_megatron.mcore.recovery.rollback import RollBack
from moe_megatron.mcore.recovery.spikes import LossSpikes


def configured_policies(config: RecoveryConfig) -> list[Policy]:
    """The policies of a run, in the order in which they are asked."""
    policies: list[Policy] = [NonFinite(config.on_nonfinite, repeats=config.repeat_nonfinite)]
    if config.on_spike != "ignore":
        policies.append(
            LossSpikes(
                config.on_spike,
                window=config.spike_window,
                deviations=config.spike_deviations,
            )
        )
    return policies


def guarded(
    config: RecoveryConfig,
    callbacks: Sequence[Callback],
    rollback: RollBack,
    run_dir: Path | None,
) -> AbstractContextManager[None]:
    """Guard the steps of Megatron's loop.

    Args:
        config: Bounds of what the run may do by itself.
        callbacks: Those of the run; the policies among them judge its steps, in their order.
        rollback: The way back.
        run_dir: Folder of the run; None writes no journal.
    """
    guard = StepGuard(
        [callback for callback in callbacks if isinstance(callback, Policy)],
        Bounds(skips=config.max_skips, rollbacks=config.max_rollbacks),
        callbacks=callbacks,
        rollback=rollback,
        run_dir=run_dir,
    )
    return guard.installed()
