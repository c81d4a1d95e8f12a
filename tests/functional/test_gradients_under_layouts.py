"""Every gradient is that of one process, for every architecture under every layout.

A step of plain gradient descent without clipping moves each weight by its gradient. So checkpoints
hold the gradients of all parameters, whole, whichever layout computed them. The learning rate is so
large that a weight is lost in the rounding of its change, and not the other way round; weights are
large, too, because attention of small ones is a mean, whose queries and keys hardly matter.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.testing.jobs import LATENT, Job, few_steps, run_jobs, step_records
from moe_megatron.testing.saved_tensors import whole_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

SHAPE: dict[str, Any] = {
    **few_steps(1, batch=8, micro_batch=4),
    "model.init_std": 0.2,
    "training.learning_rate": 1e4,
    "training.min_learning_rate": 1e4,
    "training.weight_decay": 0.0,
    "training.clip_grad": 0.0,
    "training.precision": "fp32",
    "megatron.optimizer": "sgd",
    "megatron.sgd-momentum": 0.0,
    "parallel.distributed_optimizer": False,
    "checkpoint.save_interval": 1,
    "telemetry.console": False,
}
STILL = {"training.learning_rate": 1e-30, "training.min_learning_rate": 0.0}

NORMED: dict[str, Any] = {**LATENT, "model.qk_norm": True}
ALL_HEADS = {"model.qk_norm": True, "model.qk_norm_scope": "all_heads"}
DENSE = {"moe.num_experts": None}
ATTENTION: dict[str, dict[str, Any]] = {
    "groups": {"model.num_query_groups": 2},
    "norms": {"model.qk_norm": True, "model.num_query_groups": 2},
    "norms of all heads": ALL_HEADS,
    "latent": NORMED,
    "latent, whole queries": {**NORMED, "model.latent_attention.q_lora_rank": None},
    "latent, no norms": {**NORMED, "model.qk_norm": False},
}
CASES = {**ATTENTION, **{f"dense, {name}": it | DENSE for name, it in ATTENTION.items()}}
"""Of the smallest model."""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # what is drawn by chance, and the capacity of a process, are other ones on other processes
    "switch": {"moe.input_jitter": None, "moe.capacity_factor": None},
    "glam": {"moe.router.random_second": False},
    # counts of the global batch are those of the micro-batches so far, of all processes
    "qwen3_moe": {"moe.load_balancing": "aux_loss"},
    **{name: {} for name in ("mixtral", "olmoe", "deepseek_v3", "kimi_k2", "gpt_oss")},
}
WHOLE_EXPERTS = {"switch", "glam", "gpt_oss"}
"""Whose experts cannot be split."""

TP2 = {"parallel.tensor_parallel_size": 2}
EP2 = {"parallel.expert_parallel_size": 2}
ETP1 = {"parallel.expert_tensor_parallel_size": 1}
PP2 = {"parallel.pipeline_parallel_size": 2, "megatron.decoder-first-pipeline-num-layers": 1}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tp2": (2, TP2),
    "tp2_sequences_whole": (2, {**TP2, "parallel.sequence_parallel": False}),
    "tp2_etp1": (2, TP2 | ETP1),
    "tp2_ep2": (4, TP2 | EP2),
    "tp2_ep2_etp1": (4, TP2 | EP2 | ETP1),
    "pp2": (2, PP2),
    "cp2": (2, {"parallel.context_parallel_size": 2}),
    "ep2": (2, EP2),
}


def layouts_of(case: str) -> list[str]:
    """The layouts that can hold a case, except one process."""
    if case.startswith("dense"):
        return ["tp2", "tp2_sequences_whole", "pp2", "cp2"]
    others = {"one", "tp2_sequences_whole"}
    if case in WHOLE_EXPERTS:
        others |= {"tp2", "tp2_ep2"}
    if case == "deepseek_v3":
        others.add("cp2")  # Megatron's loss of prediction layers is a mean of means of processes
    return [it for it in LAYOUTS if it not in others]


def job(root: Path, case: str, layout: str) -> Job:
    """A step of a case under a layout."""
    fields = {**SHAPE, **(CASES | ARCHITECTURES)[case], **LAYOUTS[layout][1]}
    return Job(
        run_dir=root / case / layout,
        preset=f"{case}_tiny" if case in ARCHITECTURES else "test_tiny",
        overrides=fields,
    )


def still(root: Path, case: str) -> Job:
    """The same step, which leaves all weights where they were."""
    alone = job(root, case, "one")
    return Job(
        run_dir=root / case / "still", preset=alone.preset, overrides={**alone.overrides, **STILL}
    )


def compute(root: Path, cases: dict[str, list[str]]) -> None:
    """Make a step of each case under its layouts and in one process."""
    for world_size in (1, 2, 4):
        jobs = [
            job(root, case, it)
            for case, layouts in cases.items()
            for it in ("one", *layouts)
            if LAYOUTS[it][0] == world_size
        ]
        if world_size == 1:
            jobs += [still(root, case) for case in cases]
        if jobs:
            run_jobs(jobs, world_size=world_size)


def gradients(root: Path, case: str, layout: str) -> dict[str, torch.Tensor]:
    """Minus the gradients, times the learning rate, by name."""
    first, then = (
        whole_tensors(iteration_dir(root / case / it / "checkpoints", 1))
        for it in ("still", layout)
    )
    kept = ("expert_bias", "optimizer.", "rng_state")
    return {
        key: then[key] - tensor
        for key, tensor in first.items()
        if tensor.is_floating_point() and not any(it in key for it in kept)
    }


def check(root: Path, case: str, layout: str) -> None:
    """Compare what `compute` left of a case and a layout with one process."""
    one, many = (step_records(root / case / it)[0] for it in ("one", layout))
    assert many.loss == pytest.approx(one.loss, rel=1e-6)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=2e-6)
    expected, found = gradients(root, case, "one"), gradients(root, case, layout)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        assert largest > 0, name
        error = float((found[name] - gradient).abs().max())
        assert error < 2e-5 * largest, (name, error / largest)


def test_gradients_of_latent_attention_on_two_tensor_ranks(tmp_path: Path) -> None:
    compute(tmp_path, {"latent": ["tp2"]})
    check(tmp_path, "latent", "tp2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """Steps of all cases that are asked for."""
    folder = tmp_path_factory.mktemp("gradients")
    compute(folder, {case: layouts_of(case) for case in chosen("case")})
    return folder


@pytest.mark.deep
@pytest.mark.parametrize("case", [*CASES, *ARCHITECTURES])
def test_gradients_are_those_of_one_process(case: str, root: Path) -> None:
    for layout in layouts_of(case):
        check(root, case, layout)
