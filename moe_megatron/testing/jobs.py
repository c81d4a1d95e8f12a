"""Runs training jobs on the ranks of a process group over Gloo, for tests.

One group of processes runs a list of jobs one after another. Every run but the first takes only a
fraction of the time, and shows that earlier runs left nothing behind.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.run import RunConfig
from moe_megatron.data.held_out import HeldOut
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.testing.distributed import run_distributed

if TYPE_CHECKING:
    from moe_megatron.mcore.loop.callbacks import Callback

MOCK_VOCAB_SIZE = 512
LATENT: Mapping[str, int] = {
    "model.latent_attention.kv_lora_rank": 16,
    "model.latent_attention.q_lora_rank": 24,
    "model.latent_attention.qk_head_dim": 16,
    "model.latent_attention.qk_pos_emb_head_dim": 8,
    "model.latent_attention.v_head_dim": 12,
}
"""Latent attention of a small model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run: a preset with overrides, and the folder to which it writes."""

    run_dir: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "test_tiny"
    data: Path | None = None
    """Prefix of a prepared dataset; None: Megatron's mock data."""
    blend: tuple[str, ...] = ()
    """Weights and prefixes of several datasets, in place of one."""
    tasks: tuple[int, ...] = ()
    """The task of each of them."""
    held_out: tuple[HeldOut, ...] = ()
    """What is evaluated by itself."""

    @property
    def config(self) -> RunConfig:
        """The whole configuration."""
        return apply_overrides(load_config(self.preset), self.overrides)


def few_steps(steps: int, *, batch: int = 8, micro_batch: int = 2) -> dict[str, Any]:
    """What a run of a few steps sets, which has no time for a warm-up.

    Args:
        steps: Their number.
        batch: Sequences of a step.
        micro_batch: Sequences of a micro-batch.
    """
    return {
        "training.train_steps": steps,
        "training.warmup_steps": 0,
        "training.micro_batch_size": micro_batch,
        "training.global_batch_size": batch,
    }


def step_records(run_dir: Path) -> list[StepRecord]:
    """The steps that a run has on record, in their order."""
    return [it for it in read_metrics(run_dir / METRICS_FILE) if isinstance(it, StepRecord)]


def run_jobs(
    jobs: Sequence[Job],
    *,
    world_size: int,
    timeout: float = 300.0,
    environment: Mapping[str, str | None] | None = None,
    fresh: bool = False,
) -> None:
    """Run the jobs in order, each on all ranks, with Megatron's mock data.

    Args:
        jobs: The jobs to run; they share the processes.
        world_size: Number of processes.
        timeout: Seconds after which the processes are killed.
        environment: Variables to add to those of this process.
        fresh: Start new interpreters, which see this machine's GPUs, instead of forking.

    Raises:
        RankError: A rank failed; the message contains its output.
    """
    run_distributed(
        run_on_this_rank,
        jobs,
        world_size=world_size,
        timeout=timeout,
        environment=environment,
        fresh=fresh,
    )


def run_on_this_rank(jobs: Iterable[Job]) -> None:
    """The part of `run_jobs` that runs on each rank."""
    from moe_megatron.mcore import world

    for job in jobs:
        run_job(job)
    world.leave()


def run_job(job: Job, callbacks: tuple["Callback", ...] = ()) -> None:
    """Run one job on this rank, which must then leave its world (`mcore.world.leave`).

    Args:
        job: The run.
        callbacks: What hears of it, in addition to the run's own.
    """
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import engine
    from moe_megatron.mcore.loop.job import TrainingJob
    from moe_megatron.run.machine import choose_machine
    from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
    from moe_megatron.telemetry.sinks.sample_files import SampleFiles
    from moe_megatron.telemetry.sinks.sink_set import SinkSet

    config = job.config
    sinks = SinkSet([MetricsLog(), RoutingLog(), SampleFiles()]) if world.rank() == 0 else None
    training = TrainingJob(
        config=config,
        data_paths=job.blend if job.data is None else ("1.0", str(job.data)),
        tasks=job.tasks,
        held_out=job.held_out,
        data_cache=job.run_dir.parent / "indices",  # they take half a second to build
        vocab_size=MOCK_VOCAB_SIZE,
        end_of_document=0,
        run_dir=job.run_dir,
        sinks=sinks,
        callbacks=callbacks,
    )
    engine.run(training, choose_machine(config).settings)
    if sinks is not None:
        sinks.close()
