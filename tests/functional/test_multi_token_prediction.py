"""Layers for multi-token prediction train in every layout, and their routing is counted.

They are numbered on after the last layer of the decoder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.checkpoint.routers import routers_of
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_jobs, step_records
from tests.functional import ladder

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS, HALF = 4, 2
SHAPE: dict[str, Any] = {
    "model.num_layers": 2,
    "model.num_prediction_layers": 2,
    **few_steps(STEPS),
}
PP2 = {"parallel.pipeline_parallel_size": 2}
UNTIED = {"model.tie_embeddings": False}
# The third stage holds both layers for prediction, and the last one the output projection alone.
OWN_STAGE = {
    "parallel.pipeline_parallel_size": 4,
    "megatron.pipeline-model-parallel-layout": "Et|t|mm|L",
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "pp2": (2, PP2),
    "ep2": (2, {"parallel.expert_parallel_size": 2}),
    "pp2_untied": (2, PP2 | UNTIED),
    "tp2": (2, {"parallel.tensor_parallel_size": 2}),
    "cp2": (2, {"parallel.context_parallel_size": 2}),
    "vpp2": (2, PP2 | {"megatron.pipeline-model-parallel-layout": "E|t|t|mmL"}),
    "recomputed": (1, {"training.recompute": "full"}),
    "own_stage": (4, OWN_STAGE),
    "own_stage_untied": (4, OWN_STAGE | UNTIED),
}
RESUMED = "resumed"
DEEP = LAYOUTS.keys() - {"pp2", "ep2"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """Runs from the same first weights: one process with and without prediction, and layouts."""
    folder = tmp_path_factory.mktemp("prediction")
    half = {"checkpoint.save_interval": HALF, "megatron.exit-interval": HALF}
    load = {"checkpoint.load": str(folder / "half" / "checkpoints"), "checkpoint.save_interval": 2}
    jobs = {
        1: [
            Job(run_dir=folder / "one", overrides=SHAPE),
            Job(run_dir=folder / "without", overrides=SHAPE | {"model.num_prediction_layers": 0}),
        ],
        2: [
            Job(run_dir=folder / "half", overrides=SHAPE | PP2 | half),
            Job(run_dir=folder / RESUMED, overrides=SHAPE | LAYOUTS["ep2"][1] | load),
        ],
        4: [],
    }
    if any(name.endswith("untied") for name in chosen("layout")):
        jobs[1].append(Job(run_dir=folder / "one_untied", overrides=SHAPE | UNTIED))
    for name in chosen("layout"):
        world_size, layout = LAYOUTS[name]
        jobs[world_size].append(Job(run_dir=folder / name, overrides=SHAPE | layout))
    for world_size, own in jobs.items():
        if own:
            run_jobs(own, world_size=world_size)
    return folder


@pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=pytest.mark.deep if name in DEEP else ()) for name in LAYOUTS],
)
def test_losses_gradients_and_counts_are_those_of_one_process(layout: str, root: Path) -> None:
    reference = root / ("one_untied" if layout.endswith("untied") else "one")
    alone, shared = step_records(reference), step_records(root / layout)
    assert [x.step for x in shared] == [1, 2, 3, 4]
    assert [x.loss for x in shared] == pytest.approx([x.loss for x in alone], rel=1e-4)
    # With context parallelism, tokens at the end of a sequence, of which nothing is predicted, are
    # on one rank, and Megatron averages over ranks: their weight differs by one in sixteen.
    splits_sequences = layout == "cp2"
    tolerance = 1e-3 if splits_sequences else 1e-4
    expected = pytest.approx([x.grad_norm for x in alone], rel=tolerance)
    assert [x.grad_norm for x in shared] == expected
    runs = (read_routing(folder / ROUTING_FILE) for folder in (reference, root / layout))
    for theirs, ours in zip(*runs, strict=True):
        assert ours.layers == theirs.layers == (1, 2, 3, 4)
        assert ours.assigned.tolist() == theirs.assigned.tolist() == [8 * 32 * 2] * 4
        assert ours.tokens_per_expert.sum(axis=1).tolist() == [8 * 32 * 2] * 4
        moved = abs(ours.tokens_per_expert - theirs.tokens_per_expert).sum()
        # Two tokens whose best experts tie to seven digits; with other gradients, a few more.
        assert moved <= (4 if ours.step == 1 or not splits_sequences else 64)


def test_prediction_adds_to_gradients_and_not_to_the_reported_loss(root: Path) -> None:
    with_layers, without = (step_records(root / name)[0] for name in ("one", "without"))
    assert with_layers.loss == without.loss
    assert with_layers.grad_norm != pytest.approx(without.grad_norm, rel=1e-3)
    assert next(read_routing(root / "without" / ROUTING_FILE)).layers == (1, 2)


def test_layers_of_prediction_move_between_layouts_and_their_profile_goes_on(root: Path) -> None:
    expected, found = step_records(root / "one")[HALF:], step_records(root / RESUMED)
    assert [x.step for x in found] == [3, 4]
    assert [x.loss for x in found] == pytest.approx([x.loss for x in expected], rel=1e-4)
    folder = root / RESUMED / "checkpoints" / "iter_0000004"
    profile = RoutingProfile.load(folder / PROFILE_FILE)
    assert (profile.layers, profile.steps) == ((1, 2, 3, 4), STEPS)
    assert [*profile.routers] == [1, 2, 3, 4]
    assert profile.routers == routers_of(folder)


# --- other routers ------------------------------------------------------------------------------

ROUTED = ("ep2", "tp2", "pp2", "cp2")


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """Routers that Megatron does not know, in one process and in others."""
    folder = tmp_path_factory.mktemp("routed")
    cases = [(name, layout) for name, layout in (it.split("-") for it in chosen("case"))]
    for world_size in (1, 2):
        jobs = []
        for name, layout in dict.fromkeys([(name, "one") for name, _ in cases] + cases):
            ranks, sizes = (1, {}) if layout == "one" else LAYOUTS[layout]
            if ranks == world_size:
                overrides = SHAPE | sizes | {"moe.router": name}
                jobs.append(Job(run_dir=folder / f"{name}-{layout}", overrides=overrides))
        run_jobs(jobs, world_size=world_size)
    return folder


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            f"{name}-{layout}",
            marks=() if (name, layout) == ("expert_choice", "ep2") else pytest.mark.deep,
        )
        for name in ("expert_choice", "hash", "noisy_top_k")
        for layout in ROUTED
    ],
)
def test_layers_of_prediction_have_the_router_of_the_model(case: str, routed: Path) -> None:
    name, _, layout = case.partition("-")
    alone, shared = step_records(routed / f"{name}-one"), step_records(routed / case)
    # With context parallelism random numbers are others, and gradients of the last tokens, too.
    tolerance = 1e-4 if layout != "cp2" else 1e-3 if name != "noisy_top_k" else 0.05
    for field in ("loss", "grad_norm"):
        expected = [getattr(it, field) for it in alone]
        assert [getattr(it, field) for it in shared] == pytest.approx(expected, rel=tolerance)
    for snapshot in read_routing(routed / case / ROUTING_FILE):
        assert snapshot.layers == (1, 2, 3, 4)
        assert snapshot.assigned.tolist() == [8 * 32 * 2] * 4
        if name == "expert_choice":  # every expert has its part, in layers for prediction, too
            assert (snapshot.tokens_per_expert == 8 * 32 * 2 // 4).all()


# --- the way to Hugging Face and back ------------------------------------------------------------


def load_and_save(runs: Path, example: Path) -> None:
    """A rank's side: loads a converted checkpoint into two stages, and saves it unchanged."""
    from moe_megatron.mcore import world

    unchanged = {
        "training.train_steps": 1,
        "training.learning_rate": 1e-30,
        "training.min_learning_rate": 0.0,
        "checkpoint.save_interval": 1,
        "moe.expert_bias_update_rate": 1e-30,
    }
    ladder.run(runs, example, ladder.PP2 | unchanged)
    world.leave()


def test_a_published_model_goes_through_training_and_back_bit_by_bit(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
    from moe_megatron.testing import tiny_models

    quiet, example = Execution(progress=False), tmp_path / "deepseek_v3"
    tiny_models.save("deepseek_v3", example / "hf", fused=False)
    tiny_models.add_prediction(example / "hf", copies=True)
    import_checkpoint(example / "hf", example / "megatron", execution=quiet)
    run_distributed(load_and_save, tmp_path / "runs", example, world_size=2)
    saved = tmp_path / "runs" / "deepseek_v3" / "checkpoints"
    export_checkpoint(saved, tmp_path / "back", execution=quiet)
    before, after = (
        {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
        for folder in (example / "hf", tmp_path / "back")
    )
    # Copies of embedding and output projection were such: once a model trains, they no longer are.
    copies = {f"model.layers.5.{name}.weight" for name in ("embed_tokens", "shared_head.head")}
    assert before.keys() - copies == after.keys()
    assert [k for k, v in after.items() if not v.equal(before[k])] == []
