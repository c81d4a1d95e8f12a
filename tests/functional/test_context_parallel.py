"""Whatever a model or a run has, it computes the same where two processes share each sequence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord
from moe_megatron.testing.jobs import LATENT, Job, few_steps, run_jobs

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(600)]

SHAPE: dict[str, Any] = {
    **few_steps(4),
}
YARN: dict[str, Any] = {
    "model.rope_scaling.kind": "yarn",
    "model.rope_scaling.factor": 4.0,
    "model.rope_scaling.original_max_position_embeddings": 8,
}
CASES: dict[str, dict[str, Any]] = {
    "grouped queries, sliding window": {
        "model.num_query_groups": 1,
        "model.sliding_window.size": 8,
    },
    "attention sinks": {"model.attention_sinks": True, "model.num_query_groups": 2},
    "latent attention": LATENT,
    "latent attention, yarn": LATENT | YARN,
    "yarn": YARN,
    "learned positions": {"model.position_embedding": "learned_absolute"},
    "norms of all heads": {"model.qk_norm": True, "model.qk_norm_scope": "all_heads"},
    "balance of sequences": {"moe.load_balancing": "seq_aux_loss", "moe.z_loss_coef": 0.01},
    "balance of the global batch": {"moe.load_balancing": "global_aux_loss"},
    "expert bias": {"moe.expert_bias": True, "moe.router.score_function": "sigmoid"},
    "recomputed layers": {"training.recompute": "full"},
    "recomputed attention": {"training.recompute": "selective"},
    "evaluation": {"training.eval_interval": 2},
    "loss per token": {
        "megatron.calculate-per-token-loss": True,
        "megatron.eod-mask-loss": True,
        "moe.z_loss_coef": 0.01,
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """A folder with runs of every case, from the same first weights by one process and by two."""
    folder = tmp_path_factory.mktemp("context")
    shared = {"parallel.context_parallel_size": 2, "parallel.expert_parallel_size": 2}
    for name, world_size, layout in (("one", 1, {}), ("two", 2, shared)):
        shapes = {case: {**SHAPE, **CASES[case], **layout} for case in chosen("case")}
        jobs = [Job(run_dir=folder / case / name, overrides=it) for case, it in shapes.items()]
        run_jobs(jobs, world_size=world_size)
    return folder


def _of_kind[T: (StepRecord, EvalRecord)](folder: Path, kind: type[T]) -> list[T]:
    return [x for x in read_metrics(folder / METRICS_FILE) if isinstance(x, kind)]


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_counts_are_those_of_one_process(case: str, root: Path) -> None:
    one, two = root / case / "one", root / case / "two"
    alone, shared = (_of_kind(folder, StepRecord) for folder in (one, two))
    assert [x.step for x in shared] == [1, 2, 3, 4]
    assert [x.loss for x in shared] == pytest.approx([x.loss for x in alone], rel=1e-5)
    assert [x.grad_norm for x in shared] == pytest.approx([x.grad_norm for x in alone], rel=1e-4)
    evaluated = [[x.loss for x in _of_kind(folder, EvalRecord)] for folder in (one, two)]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-5)
    assert bool(evaluated[0]) == (case == "evaluation")
    for theirs, ours in zip(*(read_routing(x / ROUTING_FILE) for x in (one, two)), strict=True):
        assert ours.assigned.tolist() == theirs.assigned.tolist() == [8 * 32 * 2] * 2
        moved = abs(ours.tokens_per_expert - theirs.tokens_per_expert).sum()
        assert moved <= 4  # two tokens whose best experts tie to seven digits
        for name, values in theirs.per_layer.items():
            assert ours.per_layer[name] == pytest.approx(values, rel=1e-2, abs=1e-3), name
