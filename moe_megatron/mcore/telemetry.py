"""Turns Megatron's steps into `StepRecord`s and `RoutingSnapshot`s for the sinks on rank 0.

On every rank it starts one small reduction per step and reads it one step later, so the training
thread never waits for the device. On rank 0 it also keeps the `RoutingProfile`. It does not know
how counters are filled (router.py) or what sinks do.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.training import get_args

from moe_megatron.config import RunConfig
from moe_megatron.errors import DataError
from moe_megatron.mcore.callbacks import Callback, EvaluationEnd, StepEnd
from moe_megatron.mcore.counters import PendingTotals, RoutingCounters, StepTotals
from moe_megatron.mcore.router import MeasuredRouter
from moe_megatron.telemetry.profile import RoutingProfile
from moe_megatron.telemetry.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.sink import SinkSet
from moe_megatron.telemetry.snapshot import RoutingSnapshot

logger = logging.getLogger(__name__)

_LOSS = "lm loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    event: StepEnd
    totals: PendingTotals


class TelemetryCallback(Callback):
    """Measures a run and hands what it measured to the sinks.

    Args:
        config: The run.
        sinks: Where rank 0 sends records; None on other ranks.
        run_dir: The run's folder, told to the sinks.
        load_profile: Profile of the checkpoint that is resumed, if any.
    """

    def __init__(
        self,
        config: RunConfig,
        sinks: SinkSet | None,
        run_dir: Path | None,
        load_profile: Path | None = None,
    ) -> None:
        self._config = config
        self._sinks = sinks
        self._run_dir = run_dir
        self._load_profile = load_profile
        self._pending: _Pending | None = None
        self._counters: RoutingCounters | None = None
        self.profile: RoutingProfile | None = None
        self.last_step = 0
        self._evaluated: set[tuple[int, str]] = set()

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Attach the counters to the routers and start the sinks."""
        self.last_step = start_step
        moe, enabled = self._config.moe, self._config.telemetry.enabled
        layers = self._config.moe_layers if enabled else ()
        num_experts = (moe.num_experts or 0) if layers else 0
        device = next(model[0].parameters()).device
        self._counters = RoutingCounters(layers, num_experts, device)
        if layers:
            attach_routers(model, self._counters)
        if self._sinks is None:
            return
        if layers:
            self.profile = self._initial_profile(layers, num_experts)
        info = RunInfo(
            run_dir=self._run_dir,
            total_steps=self._config.training.train_steps,
            start_step=start_step,
            num_layers=self._config.model.num_layers,
            num_experts=num_experts,
            top_k=moe.top_k,
            world_size=dist.get_world_size(),
            layers=layers,
            description=self._config.preset or "custom configuration",
        )
        self._sinks.start(info)

    def _initial_profile(self, layers: tuple[int, ...], num_experts: int) -> RoutingProfile:
        if self._load_profile is not None and self._load_profile.exists():
            try:
                return RoutingProfile.load(self._load_profile)
            except DataError as error:
                logger.warning("starting an empty routing profile: %s", error)
        return RoutingProfile.empty(
            layers=layers, num_experts=num_experts, top_k=self._config.moe.top_k
        )

    def on_step_end(self, event: StepEnd) -> None:
        """Start reducing this step and publish the one before."""
        self.last_step = event.step
        assert self._counters is not None
        totals = self._counters.collect(
            contributes=_sees_own_tokens(), loss=event.losses.get(_LOSS)
        )
        self.flush()
        self._pending = _Pending(event=event, totals=totals)

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """Publish the last step, then the evaluation, of which Megatron repeats the last."""
        self.flush()
        if (event.step, event.split) in self._evaluated:
            return
        self._evaluated.add((event.step, event.split))
        loss = _mean_over_reporting_ranks(event.losses.get(_LOSS))
        if self._sinks is not None and loss is not None:
            self._sinks.evaluation(EvalRecord(step=event.step, split=event.split, loss=loss))

    def on_checkpoint_start(self, step: int) -> None:
        """Bring profile and logs up to the step that is saved."""
        self.flush()
        if self._sinks is not None:
            self._sinks.flush()

    def flush(self) -> None:
        """Publish the pending step, if any."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        totals = pending.totals.get()
        if self._sinks is None:
            return
        snapshot = None
        if len(totals.tokens):
            snapshot = make_snapshot(
                pending.event.step, self._config.moe_layers, self._config.moe.top_k, totals
            )
            assert self.profile is not None
            self.profile.add(snapshot)
        self._sinks.step(self._record(pending.event, totals), snapshot)

    def _record(self, event: StepEnd, totals: StepTotals) -> StepRecord:
        training = self._config.training
        return StepRecord(
            step=event.step,
            loss=totals.loss,
            learning_rate=event.learning_rate,
            grad_norm=None if event.grad_norm is None else float(event.grad_norm),
            step_seconds=event.seconds,
            tokens=training.global_batch_size * self._config.data.sequence_length,
            total_steps=training.train_steps,
            skipped=event.skipped,
        )


def attach_routers(model: list[Any], counters: RoutingCounters | None) -> None:
    """Let every measured router of the model chunks count into its row; None stops counting."""
    for chunk in model:
        for module in chunk.modules():
            if isinstance(module, MeasuredRouter):
                number = module.layer_number
                module.attach(None if counters is None else counters.row(number))


def make_snapshot(
    step: int, layers: tuple[int, ...], top_k: int, totals: StepTotals
) -> RoutingSnapshot:
    """Make the snapshot of one step from its sums.

    Args:
        step: 1-based step.
        layers: Global 1-based numbers of the MoE layers.
        top_k: Experts a token is sent to.
        totals: Sums over the global batch.
    """
    tokens = totals.tokens
    assert (tokens == tokens[0]).all(), f"layers routed different numbers of tokens: {tokens}"
    num_tokens, num_experts = int(tokens[0]), totals.tokens_per_expert.shape[1]
    reached = totals.tokens_per_expert.sum(axis=1)
    per_token = 1.0 / max(num_tokens, 1)
    # Switch Transformers, arXiv 2101.03961, equation 4, with counts per top_k assignment.
    fractions = totals.tokens_per_expert / np.maximum(reached, 1)[:, None]
    aux_loss = num_experts * (fractions * totals.prob_sums * per_token).sum(axis=1)
    return RoutingSnapshot(
        step=step,
        tokens=num_tokens,
        top_k=top_k,
        layers=layers,
        tokens_per_expert=totals.tokens_per_expert,
        dropped=num_tokens * top_k - reached,
        entropy=totals.entropy_sums * per_token,
        aux_loss=aux_loss,
        z_loss=totals.z_sums * per_token,
    )


def _sees_own_tokens() -> bool:
    """Whether no other rank routes the tokens that this one routes."""
    sequence_parallel = bool(get_args().sequence_parallel)
    return sequence_parallel or mpu.get_tensor_model_parallel_rank() == 0


def _mean_over_reporting_ranks(value: torch.Tensor | None) -> float | None:
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    reported = torch.zeros(2, dtype=torch.float64, device=device)
    if value is not None:
        reported[0] = value.detach().reshape(())
        reported[1] = 1.0
    dist.all_reduce(reported)
    total, count = reported.tolist()
    return total / count if count else None
