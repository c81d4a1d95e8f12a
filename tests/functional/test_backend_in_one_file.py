"""A backend that only this file knows: a loop in plain torch, around `MoEModel`, without Megatron.

It gets what every run gets around it: checks, data, sinks, report, history and summary.
"""

import time
from pathlib import Path

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.data.index import read_tokens
from moe_megatron.mcore.loop.job import JobOutcome, MachineSettings, TrainingJob
from moe_megatron.model.outputs import RoutingInfo
from moe_megatron.run.ending import conclude
from moe_megatron.run.start import start
from moe_megatron.telemetry.history import RoutingHistory
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.records import RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

# --- the backend: all that its author writes -----------------------------------------------------


def plain_torch(job: TrainingJob, machine: MachineSettings) -> JobOutcome:
    """Train on one process: `MoEModel`, AdamW, the first tokens of the first data set."""
    config, training = job.config, job.config.training
    tokens = torch.from_numpy(read_tokens(Path(job.data_paths[1])).astype("int64"))
    model = MoEModel.from_architecture(config.architecture)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
    layers, top_k = config.moe_layers, config.moe.top_k
    profile = RoutingProfile.empty(
        layers=layers, num_experts=config.moe.num_experts or 0, top_k=top_k
    )
    info = RunInfo(
        run_dir=job.run_dir, total_steps=training.train_steps, start_step=0, world_size=1,
        num_layers=config.model.num_layers, num_experts=config.moe.num_experts or 0, top_k=top_k,
        layers=layers, description="plain torch", quantities=("entropy",),
    )  # fmt: skip
    job.sinks.start(info)
    started = time.perf_counter()
    shape = training.global_batch_size, config.data.sequence_length
    for step in range(1, training.train_steps + 1):
        begun, batch = time.perf_counter(), tokens[: shape[0] * shape[1]].view(shape)
        output = model(batch, labels=batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        snapshot = snapshot_of(output.routing, step, batch.numel(), top_k)
        profile.add(snapshot)
        record = StepRecord(
            step=step, total_steps=training.train_steps, loss=output.lm_loss.item(),
            learning_rate=training.learning_rate, grad_norm=None, tokens=batch.numel(),
            step_seconds=time.perf_counter() - begun,
        )  # fmt: skip
        job.sinks.step(record, snapshot)
    seconds = time.perf_counter() - started
    return JobOutcome(
        steps=training.train_steps, interrupted=False, seconds=seconds, profile=profile
    )


def snapshot_of(
    routing: tuple[RoutingInfo, ...], step: int, tokens: int, top_k: int
) -> RoutingSnapshot:
    counts = torch.stack([layer.tokens_per_expert for layer in routing]).numpy()
    dropped = torch.stack([layer.dropped for layer in routing]).numpy()
    return RoutingSnapshot(
        step=step,
        tokens=tokens,
        top_k=top_k,
        layers=tuple(layer.layer for layer in routing),
        tokens_per_expert=counts,
        assigned=counts.sum(axis=1) + dropped,
        dropped=dropped,
        per_layer={"entropy": torch.stack([it.entropy for it in routing]).double().numpy()},
    )


# --- the run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("the expert that sees a token is the expert that learns from it. " * 200)
    return file


def test_a_backend_is_a_function_and_gets_all_that_a_run_has(tmp_path: Path, text: Path) -> None:
    config = apply_overrides(
        load_config("test_tiny"),
        {
            "run_dir": str(tmp_path / "run"),
            "data.paths": [str(text)],
            "training.train_steps": 8,
            "training.precision": "fp32",
            "training.eval_interval": None,
            "telemetry.console": False,
        },
    )
    result = start(config, backend=plain_torch)
    losses = [record.loss for record in result.history.steps]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5
    summary = conclude(result)
    assert "expert load (8 steps" in summary
    assert "Router entropy" in (tmp_path / "run" / "report.html").read_text()
    kept = RoutingHistory(tmp_path / "run" / "history")
    assert (kept.first_step, kept.last_step, kept.quantities) == (1, 8, ("entropy",))
