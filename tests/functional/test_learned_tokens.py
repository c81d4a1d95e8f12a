"""Where answers are learned, the output layer computes theirs alone, and nothing else changes.

The twin computes the losses of all tokens, as Megatron does by itself.
"""

from pathlib import Path
from typing import Any

import pytest

from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_job, step_records
from tests.functional.test_instruction_layouts import LENGTH, data, root

__all__ = ["data", "root"]

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SHAPE: dict[str, Any] = {
    "model.num_layers": 2,
    "data.sequence_length": LENGTH,
    "moe.aux_loss_coef": 0.05,
    **few_steps(3),
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "divided": {"model.logits_divisor": 4.0, "model.lm_head_bias": True},
    "frozen_head": {"finetune.freeze": ["output", "embeddings"], "model.tie_embeddings": False},
    "pp2": {"parallel.pipeline_parallel_size": 2},
    "tp2": {"parallel.tensor_parallel_size": 2},
}
ALONE = [name for name in KINDS if name not in {"pp2", "tp2"}]


def both_ways(names: list[str], folder: Path, prefix: Path) -> dict[str, list[int]]:
    """Train in both ways; returns how many tokens each kind's output layer got, by micro-batch."""
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import forward

    ours, rows = forward.learned_losses, []

    def counted(**given: Any) -> Any:
        layer = given.pop("output_layer")

        def seen(hidden: Any, **named: Any) -> Any:
            rows.append((len(hidden), int(given["loss_mask"].sum())))
            return layer(hidden, **named)

        return ours(output_layer=seen, **given)

    found = {}
    for name in names:
        for way, losses in (("ours", counted), ("all", all_losses)):
            forward.learned_losses = losses
            overrides = {**SHAPE, **KINDS[name]}
            run_job(Job(run_dir=folder / name / way, overrides=overrides, data=prefix))
        found[name] = list(rows)
        rows.clear()
    world.leave()
    return found


def all_losses(**given: Any) -> Any:
    """What Megatron's model does without a processor."""
    logits, _ = given["output_layer"](
        given["hidden_states"],
        weight=given["output_weight"],
        runtime_gather_output=given["runtime_gather_output"],
    )
    return given["compute_language_model_loss"](given["labels"], given["scale_logits"](logits))


@pytest.fixture(scope="module")
def runs(root: Path, data: Path) -> tuple[Path, dict[str, Any]]:
    folder = root / "heads"
    (rows,) = run_distributed(both_ways, ALONE, folder, data, world_size=1)
    ranks = run_distributed(both_ways, ["pp2", "tp2"], folder, data, world_size=2)
    return folder, {**rows, "pp2": ranks[1]["pp2"], "tp2": ranks[1]["tp2"]}


@pytest.mark.deep
@pytest.mark.parametrize("kind", KINDS)
def test_training_on_answers_is_as_with_the_logits_of_all_tokens(kind, runs):
    folder, rows = runs
    ours, theirs = (step_records(folder / kind / way) for way in ("ours", "all"))
    assert len(ours) == 3
    for our, their in zip(ours, theirs, strict=True):
        assert our.loss == pytest.approx(their.loss, rel=1e-6)
        assert our.grad_norm == pytest.approx(their.grad_norm, rel=1e-5)
        assert (our.tokens, our.step) == (their.tokens, their.step)
    if kind == "tp2":
        assert not rows[kind], "with sequence parallelism it is left to Megatron"
    else:
        assert len(rows[kind]) >= 3
        assert all(given == learned < 2 * LENGTH for given, learned in rows[kind])
