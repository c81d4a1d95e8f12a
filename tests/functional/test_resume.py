"""A run goes on exactly where it stopped, and with other settings where those may change."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.config import load_config
from moe_megatron.config.adapter import AdapterConfig
from moe_megatron.config.resume import ON_RESUME, flat, may_change
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing.jobs import Job, run_jobs, step_records

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SHAPE: dict[str, Any] = {
    "training.train_steps": 4,
    "training.warmup_steps": 0,
    "training.decay_style": "linear",
    "training.micro_batch_size": 2,
    "checkpoint.save_interval": 2,
    # Random numbers take part, so that the state of their generators matters.
    "model.hidden_dropout": 0.1,
}

ROUTERS: dict[str, dict[str, Any]] = {
    "aux loss": {},
    "expert bias": {
        "moe.router.score_function": "sigmoid",
        "moe.expert_bias": True,
        "moe.expert_bias_update_rate": 0.05,
        "moe.load_balancing": "none",
        "moe.aux_loss_coef": 0,
        "moe.z_loss_coef": 0,
    },
    "quantiles": {"moe.load_balancing": "quantile_balancing", "moe.aux_loss_coef": 0},
    "a bias of its own": {"moe.router": {"name": "loss_free", "update_rate": 0.05}},
    "cutoffs": {"moe.router": "expert_choice"},
    "noise": {"moe.router": "noisy_top_k"},
    "global loss": {"moe.load_balancing": "global_aux_loss", "moe.input_jitter": 0.1},
}
"""By what a router remembers from one step to the next."""
DEEP = {
    *("quantiles", "cutoffs", "global loss"),
    *("another rate for embeddings", "rates of roles", "bf16", "memory"),
}
"""Of which others show the same, or what is stored."""

CHANGED: dict[str, dict[str, Any]] = {
    "the loss of pairs": {"preferences.beta": 0.3},
    "longer": {"training.train_steps": 6},
    "optimizer": {
        "training.learning_rate": 1e-3,
        "training.min_learning_rate": 1e-4,
        "training.warmup_steps": 1,
        "training.decay_style": "cosine",
        "training.weight_decay": 0.01,
        "training.adam_beta1": 0.8,
        "training.adam_beta2": 0.9,
        "training.clip_grad": 0.5,
    },
    "another rate for embeddings": {
        "megatron.decoupled-lr": "5e-4",
        "training.deterministic": True,
    },
    "rates of roles": {
        "finetune.router_learning_rate": "0.1x",
        "finetune.expert_learning_rate": 5e-4,
        "finetune.shared_expert_learning_rate": 5e-4,
        "finetune.attention_learning_rate": "2x",
        "finetune.mlp_learning_rate": "2x",
        "finetune.embedding_learning_rate": "0.5x",
        "finetune.output_learning_rate": "0.5x",
        "finetune.norm_learning_rate": "0.5x",
    },
    "batch": {"training.global_batch_size": 8, "training.micro_batch_size": 4},
    "bf16": {"training.precision": "bf16"},
    "memory": {
        "training.recompute": "full",
        "checkpoint.async_save": True,
        "checkpoint.fully_reshardable": False,
        "checkpoint.save_optimizer": False,
        "checkpoint.fallback": False,
        "checkpoint.keep_last": 1,
        "checkpoint.keep_every": 3,
        "checkpoint.patience_seconds": 60.0,
        "checkpoint.save_interval": 3,
        "training.log_interval": 2,
        "training.eval_steps": 3,
        "data.num_workers": 1,
    },
    "routing": {
        "moe.top_k": 3,
        "moe.router_dtype": "fp64",
        "moe.load_balancing": "seq_aux_loss",
        "moe.aux_loss_coef": 0.02,
        "moe.z_loss_coef": 0.01,
        "moe.capacity_factor": 1.25,
        "moe.pad_to_capacity": True,
        "moe.drop_policy": "position",
        "moe.input_jitter": 0.05,
        "moe.expert_dropout": 0.1,
        "moe.expert_bias_update_rate": 0.01,
        "moe.token_dispatcher": "allgather",
        "moe.grouped_gemm": False,
        "model.init_std": 0.01,
        "model.attention_dropout": 0.1,
        "model.hidden_dropout": 0.0,
        "model.sliding_window": {"size": 8},
        "model.rope_scaling": {"kind": "llama3", "factor": 2.0},
    },
}
"""Changes with which a run goes on, in groups that can be made together."""

ELSEWHERE = {
    "data.paths": "another source is prepared before a run starts",
    "data.weights": "as data.paths",
    "data.text_key": "as data.paths",
    "data.format": "as data.paths",
    "data.max_bad_line_ratio": "as data.paths",
    "data.cache_dir": "as data.paths",
    "checkpoint.keep_best": "it needs evaluations, which this data has not; test_integrity.py",
    "checkpoint.load": "it is what resumes",
    "parallel.sequence_parallel": "test_parallel_parity.py, with all other layouts",
    **dict.fromkeys(
        (f"adapter.{it.name}" for it in fields(AdapterConfig) if it.name != "rank"),
        "there is an effect with adapters alone; test_adapter_runs.py",
    ),
}
"""Fields that may change and are not changed here, and why."""


def cases(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(it, marks=pytest.mark.deep if it in DEEP else ()) for it in table]


def resumed(root: Path, name: str, source: str, **changes: Any) -> Job:
    load = {"checkpoint.load": str(root / source / "checkpoints")}
    return Job(run_dir=root / name, overrides={**SHAPE, **changes, **load})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """Every run to its end; each again in two halves; and the first half with other settings."""
    root = tmp_path_factory.mktemp("resume")
    jobs = []
    for name in dict.fromkeys(["aux loss", *chosen("router")]):
        router = ROUTERS[name]
        half = {**router, "megatron.exit-interval": 2}
        jobs += [
            Job(run_dir=root / name, overrides={**SHAPE, **router}),
            Job(run_dir=root / f"{name}, half", overrides={**SHAPE, **half}),
            resumed(root, f"{name}, resumed", f"{name}, half", **router),
        ]
    changed = dict.fromkeys(["optimizer", "batch", *chosen("change")])
    jobs += [resumed(root, name, "aux loss, half", **CHANGED[name]) for name in changed]
    run_jobs(jobs, world_size=1)
    return root


@pytest.mark.parametrize("router", cases(ROUTERS))
def test_resumed_run_is_the_uninterrupted_one_bit_by_bit(router: str, runs: Path) -> None:
    straight = {r.step: r for r in step_records(runs / router)}
    found = step_records(runs / f"{router}, resumed")
    assert [r.step for r in found] == [3, 4]
    for record in found:
        same = straight[record.step]
        assert (record.loss, record.grad_norm) == (same.loss, same.grad_norm)
    whole = {s.step: s for s in read_routing(runs / router / ROUTING_FILE)}
    for snapshot in read_routing(runs / f"{router}, resumed" / ROUTING_FILE):
        assert (snapshot.tokens_per_expert == whole[snapshot.step].tokens_per_expert).all()


@pytest.mark.parametrize("change", cases(CHANGED))
def test_run_goes_on_with_other_settings(change: str, runs: Path) -> None:
    last = CHANGED[change].get("training.train_steps", SHAPE["training.train_steps"])
    assert [r.step for r in step_records(runs / change)] == list(range(3, last + 1))


def rates(run_dir: Path) -> dict[int, float | None]:
    return {r.step: r.learning_rate for r in step_records(run_dir)}


def test_learning_rate_is_the_one_configured(runs: Path) -> None:
    # Half of a cosine from 1e-3 after step 1 to 1e-4 after step 4: a third of it is gone.
    assert rates(runs / "optimizer")[4] == pytest.approx(1e-4)
    assert rates(runs / "optimizer")[3] == pytest.approx(1e-4 + 9e-4 * 0.25)


def test_schedule_stays_at_its_step_when_a_batch_grows(runs: Path) -> None:
    straight = rates(runs / "aux loss")
    assert rates(runs / "batch") == {step: straight[step] for step in (3, 4)}


def test_every_field_that_may_change_is_changed() -> None:
    whole = {name for name in ON_RESUME if "." not in name}
    names = {name for name in flat(load_config("test_tiny")) if name.partition(".")[0] not in whole}
    free = {name for name in names if name.count(".") == 1 and may_change(name)}
    changed = {name for changes in CHANGED.values() for name in changes}
    assert free - {*ELSEWHERE} <= changed
    assert set(ELSEWHERE) <= free
