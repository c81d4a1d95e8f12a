"""Turns Megatron's steps into `StepRecord`s and `RoutingSnapshot`s for the sinks on rank 0.

On every rank it starts one small reduction per step and reads it one step later, so the training
thread never waits for the device. On rank 0 it also keeps the `RoutingProfile`. It does not know
how counters are filled (routed.py) or what sinks do.
"""

import copy
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.training import get_args
from megatron.training.training import num_floating_point_operations

from moe_megatron.config import RunConfig
from moe_megatron.errors import DataError
from moe_megatron.mcore import world
from moe_megatron.mcore.layers.layer_numbers import number_of
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.layers.token_ids import samples_tokens, tasks_counted
from moe_megatron.mcore.loop.callbacks import Callback, EvaluationEnd, StepEnd, TasksEvaluated
from moe_megatron.mcore.measure.counters import PendingTotals, RoutingCounters, StepTotals
from moe_megatron.mcore.measure.lasting_writers import rewind_tensorboard
from moe_megatron.mcore.measure.own_tokens import sees_own_tokens
from moe_megatron.mcore.measure.rank_load import ComputeTimer, RankValues, by_expert_rank
from moe_megatron.mcore.measure.router_digests import RouterDigests
from moe_megatron.mcore.measure.sampler import PendingSample, RoutingSampler
from moe_megatron.mcore.measure.snapshots import make_snapshot
from moe_megatron.mcore.measure.writers import RoutingWriters
from moe_megatron.platform.peak import peak_tflops
from moe_megatron.telemetry.catalog import quantities
from moe_megatron.telemetry.identity import run_id
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.telemetry.values.recent_use import RecentUse
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord, StepRuntime
from moe_megatron.telemetry.values.task_scores import value_of
from moe_megatron.version import package_version

logger = logging.getLogger(__name__)

_LOSS = "lm loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    event: StepEnd
    totals: PendingTotals
    ended_at: float
    checkpoint_step: int | None
    checkpoint_at: float | None
    save_failed: bool
    failed_saves: int
    sample: PendingSample | None


class TelemetryCallback(Callback):
    """Measures a run and passes the records to the sinks.

    Args:
        config: The run.
        sinks: Receive the records of rank 0; None on other ranks.
        run_dir: The run's folder, which is passed to the sinks.
        load_profile: Routing profile of the checkpoint that the run loads, if any.
        saves_checkpoints: Whether the run writes checkpoints.
        number_masked: Gives the number of masked experts of each MoE layer; () for none.
        health: The state of this rank's logs and sinks.
        measures: What the loss function reports besides the loss, by name.
    """

    def __init__(
        self,
        config: RunConfig,
        sinks: SinkSet | None,
        run_dir: Path | None,
        load_profile: Path | None = None,
        *,
        saves_checkpoints: bool = False,
        number_masked: Callable[[], tuple[int, ...]] = tuple,
        health: SinkHealth | None = None,
        measures: tuple[str, ...] = (),
    ) -> None:
        self._config = config
        self._sinks = sinks
        self._run_dir = run_dir
        self._load_profile = load_profile
        self._pending: _Pending | None = None
        self._counters: RoutingCounters | None = None
        self.profile: RoutingProfile | None = None
        self.recent = RecentUse()
        self.last_step = 0
        self._evaluated: set[tuple[int, str]] = set()
        self._saves_checkpoints = saves_checkpoints
        self._number_masked = number_masked
        self._health = health or SinkHealth()
        self._measures = measures
        self._checkpoint_step: int | None = None
        self._checkpoint_at: float | None = None
        self._taken_at = 0.0
        self._save_failed, self._failed_saves = False, 0
        self._timer: ComputeTimer | None = None
        self._sampler: RoutingSampler | None = None
        self._digests: RouterDigests | None = None
        self._expert_ranks = np.zeros(1, dtype=np.int64)
        self._writers: RoutingWriters | None = None
        self._quantities: tuple[Quantity, ...] = ()
        self._tasks: tuple[str, ...] = ()
        self._run: RunInfo | None = None

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Attach the counters to the routers and start the sinks."""
        self.last_step = start_step
        moe, enabled = self._config.moe, self._config.telemetry.enabled
        layers = self._config.routed_layers if enabled else ()
        num_experts = (moe.num_experts or 0) if layers else 0
        device = next(model[0].parameters()).device
        self._quantities = quantities()
        self._tasks = tasks_counted(self._config)
        self._counters = RoutingCounters(
            layers,
            num_experts,
            device,
            self._quantities,
            len(self._tasks),
            measures=self._measures,
        )
        self._counters.check_same_on_all_ranks()
        if enabled:
            self._timer = ComputeTimer(model)
        if layers:
            attach_routers(model, self._counters)
            self._sampler = RoutingSampler(
                model,
                layers,
                num_experts,
                self._config.telemetry.sample_interval,
                has_bias=moe.expert_bias,
                replayed=get_args().cuda_graph_impl != "none",
                counts_tokens=samples_tokens(self._config),
            )
            self._writers = RoutingWriters.of_megatron()
            self._digests = RouterDigests(model, layers)
        if start_step:
            rewind_tensorboard(start_step)
        if self._saves_checkpoints:
            self._checkpoint_step, self._checkpoint_at = start_step, time.monotonic()
        hosts = tuple(world.gather_texts(socket.gethostname()))
        expert_rank = str(mpu.get_expert_model_parallel_rank())
        self._expert_ranks = np.array([int(it) for it in world.gather_texts(expert_rank)])
        if self._sinks is None:
            return
        if layers:
            self.profile = self._initial_profile(layers, num_experts)
        run = self._run_info(start_step, layers, num_experts, device)
        self._run = replace(run, hosts=hosts)
        self._sinks.start(self._run)

    def _run_info(
        self, start_step: int, layers: tuple[int, ...], num_experts: int, device: torch.device
    ) -> RunInfo:
        config, world_size = self._config, dist.get_world_size()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        peak = config.telemetry.peak_tflops or peak_tflops(name)
        parallel = config.parallel
        labels = {
            "run_id": run_id(self._run_dir),
            "preset": config.preset or "",
            "version": package_version(),
            "device": name,
            "world_size": world_size,
            "tp": parallel.tensor_parallel_size,
            "pp": parallel.pipeline_parallel_size,
            "ep": parallel.expert_parallel_size,
            "cp": parallel.context_parallel_size,
            "dp": parallel.data_parallel_size(world_size),
            "num_layers": config.model.num_layers,
            "moe_layers": len(layers),
            "num_experts": num_experts,
            "top_k": config.moe.top_k if layers else 0,
        }
        args = get_args()
        return RunInfo(
            run_dir=self._run_dir,
            total_steps=config.training.train_steps,
            start_step=start_step,
            num_layers=config.model.num_layers,
            num_experts=num_experts,
            top_k=config.moe.top_k,
            world_size=world_size,
            layers=layers,
            description=config.preset or "custom configuration",
            quantities=tuple(quantity.name for quantity in self._quantities),
            labels={label: str(value) for label, value in labels.items()},
            expert_ranks=parallel.expert_parallel_size,
            tasks=self._tasks,
            flops_per_token=num_floating_point_operations(args, 1) / args.seq_length,
            peak_flops=None if peak is None else peak * 1e12 * world_size,
            saves_checkpoints=self._saves_checkpoints,
            earlier_routing=copy.deepcopy(self.profile),
        )

    def _initial_profile(self, layers: tuple[int, ...], num_experts: int) -> RoutingProfile:
        empty = RoutingProfile.empty(
            layers=layers, num_experts=num_experts, top_k=self._config.moe.top_k
        )
        if self._load_profile is None or not self._load_profile.exists():
            return empty
        try:
            profile = RoutingProfile.load(self._load_profile)
            profile.merge(empty)  # refuses a profile of another top_k
        except DataError as error:
            logger.warning("starting an empty routing profile: %s", error)
            return empty
        return profile

    def on_step_start(self, step: int) -> None:
        """Begin a sample, if it is time for one."""
        if self._sampler is not None:
            self._sampler.on_step_start(step)

    def on_step_end(self, event: StepEnd) -> None:
        """Start the reduction of this step and publish the previous one."""
        self.last_step = event.step
        assert self._counters is not None
        contributes = sees_own_tokens()
        totals = self._counters.collect(
            contributes=contributes,
            loss=event.losses.get(_LOSS),
            measured=event.losses,
            own=self._own_values(),
        )
        sample = None
        if self._sampler is not None:
            sample = self._sampler.collect(event.step, contributes=contributes)
        self.flush()
        self._pending = _Pending(
            event=event,
            totals=totals,
            ended_at=time.monotonic(),
            checkpoint_step=self._checkpoint_step,
            checkpoint_at=self._checkpoint_at,
            save_failed=self._save_failed,
            failed_saves=self._failed_saves,
            sample=sample,
        )

    def _own_values(self) -> RankValues | None:
        if self._timer is None:
            return None
        return replace(self._timer.take(), sinks=self._health.states())

    def on_step_discarded(self, step: int) -> None:
        """Forget what the routers counted in this step."""
        if self._counters is not None:
            self._counters.discard()
        if self._sampler is not None:
            self._sampler.discard()

    def on_rollback_start(self) -> None:
        """Bring the sinks up to date with the last step."""
        self.flush()
        if self._sinks is not None:
            self._sinks.flush()

    def on_rolled_back(self, checkpoint: Path, step: int) -> None:
        """Go on with profile and records from the checkpoint's step."""
        self.last_step = step
        rewind_tensorboard(step)
        self._evaluated = {(at, split) for at, split in self._evaluated if at <= step}
        if self._sinks is None or self._run is None:
            return
        self._load_profile = checkpoint / PROFILE_FILE
        if self.profile is not None:
            self.profile = self._initial_profile(self._run.layers, self._run.num_experts)
        earlier = copy.deepcopy(self.profile)
        self._sinks.rewind(replace(self._run, start_step=step, earlier_routing=earlier))

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """Publish the last step, then the evaluation; Megatron repeats the final evaluation."""
        self.flush()
        if (event.step, event.split) in self._evaluated:
            return
        self._evaluated.add((event.step, event.split))
        loss = _mean_over_reporting_ranks(event.losses.get(_LOSS))
        means = {it: _mean_over_reporting_ranks(event.losses.get(it)) for it in self._measures}
        measures = {name: value for name, value in means.items() if value is not None}
        if self._sinks is not None and loss is not None:
            record = EvalRecord(step=event.step, split=event.split, loss=loss, measures=measures)
            self._sinks.evaluation(record)

    def on_tasks_evaluated(self, event: TasksEvaluated) -> None:
        """Publish the last step, then the scores and their mean."""
        self.flush()
        loss = value_of(event.scores, "loss")
        if self._sinks is not None and loss is not None:
            self._evaluated.add((event.step, "validation"))
            record = EvalRecord(step=event.step, split="validation", loss=loss, tasks=event.scores)
            self._sinks.evaluation(record)

    def on_checkpoint_start(self, step: int) -> None:
        """Bring profile and sinks up to date with the step that is being saved."""
        self.flush()
        if self._sinks is not None:
            self._sinks.flush()

    def on_checkpoint_end(self, step: int) -> None:
        """Remember when the state was taken that the asynchronous writer may still have."""
        self._note_weights()
        self._taken_at = time.monotonic()

    def on_checkpoint_complete(self, step: int) -> None:
        """Remember step and time; the next step reports them."""
        self._checkpoint_step, self._checkpoint_at = step, self._taken_at
        self._save_failed = False

    def on_checkpoint_failed(self, step: int, reason: str) -> None:
        """Count it; the next step reports it."""
        self._save_failed = True
        self._failed_saves += 1

    def on_train_end(self, model: list[Any]) -> None:
        """Publish the last step while Megatron's writers are still open."""
        self.flush()
        self._note_weights()
        if self._digests is not None:
            self._digests.release()
        if self._timer is not None:
            self._timer.remove()

    def _note_weights(self) -> None:
        """Have the profile say of which weights it is: those of the last step."""
        found = {} if self._digests is None else self._digests.gathered()
        if self.profile is not None:
            self.profile.routers = found

    def flush(self) -> None:
        """Publish the pending step, if any."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        totals = pending.totals.get()
        sample = None if pending.sample is None else pending.sample.get()
        step = pending.event.step
        writers = self._writers if self._writers and self._writers.wants(step) else None
        if self._sinks is None and self._writers is None:
            return
        snapshot = None
        if len(totals.tokens):
            snapshot = make_snapshot(
                step,
                self._config.routed_layers,
                self._config.moe.top_k,
                totals,
                self._quantities,
                self._tasks,
            )
            self.recent.add(snapshot)
        if writers is not None and snapshot is not None:
            writers.write(snapshot, self.recent.dead())
        if self._sinks is None:
            return
        if snapshot is not None:
            assert self.profile is not None
            self.profile.add(snapshot)
        self._sinks.step(self._record(pending, totals), snapshot)
        if sample is not None and not sample.is_empty:
            self._sinks.sample(sample)

    def _record(self, pending: _Pending, totals: StepTotals) -> StepRecord:
        training, event = self._config.training, pending.event
        memory, seconds = totals.rank_memory_bytes.max(), totals.rank_compute_seconds
        return StepRecord(
            step=event.step,
            loss=totals.loss,
            learning_rate=event.learning_rate,
            grad_norm=None if event.grad_norm is None else float(event.grad_norm),
            step_seconds=event.seconds,
            tokens=training.global_batch_size * self._config.data.sequence_length,
            total_steps=training.train_steps,
            skipped=event.skipped,
            measures=totals.measures,
            memory_bytes=int(memory) or None,
            peak_memory_bytes=int(totals.rank_peak_bytes.max()) or None,
            expert_rank_seconds=by_expert_rank(seconds, self._expert_ranks),
            runtime=StepRuntime(
                ended_at=pending.ended_at,
                phase_seconds=event.phase_seconds,
                rank_compute_seconds=totals.rank_compute_seconds,
                rank_memory_bytes=totals.rank_memory_bytes,
                other_sinks=totals.other_sinks,
                checkpoint_step=pending.checkpoint_step,
                checkpoint_at=pending.checkpoint_at,
                save_failed=pending.save_failed,
                failed_saves=pending.failed_saves,
                masked_experts=self._number_masked(),
                dead_experts=self.recent.dead() if len(totals.tokens) else None,
            ),
        )


def attach_routers(model: list[Any], counters: RoutingCounters | None) -> None:
    """Make every measured router of the model chunks count into its row; None stops counting."""
    for chunk in model:
        for module in chunk.modules():
            if isinstance(module, MeasuredRouter):
                number = number_of(module)
                module.attach(None if counters is None else counters.row(number))


def _mean_over_reporting_ranks(value: torch.Tensor | None) -> float | None:
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    reported = torch.zeros(2, dtype=torch.float64, device=device)
    if value is not None:
        reported[0] = value.detach().reshape(())
        reported[1] = 1.0
    dist.all_reduce(reported)
    total, count = reported.tolist()
    return total / count if count else None
