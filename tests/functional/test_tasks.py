"""The task of a sample reaches every router, wherever its layers are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_megatron import MoEModel
from moe_megatron.routing import Routing
from moe_megatron.routing.registry import registered_router
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE, read_routing
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_on_this_rank

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS, BATCH, SEQUENCE = 4, 8, 32
WEIGHTS = (0.25, 0.5, 0.25)
TASKS = (0, 1, 0)
"""The first task has two sources."""
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH),
    "data.sequence_length": SEQUENCE,
    "data.paths": ("here", "there"),
    "data.tasks": ("first", "second"),
    "data.split": "100,0,0",
    "moe.num_experts": 4,
    "moe.top_k": 1,
    "moe.router": "by_task",
    "moe.load_balancing": "none",
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "ep2": (2, {"parallel.expert_parallel_size": 2}),
    "tp2": (2, {"parallel.tensor_parallel_size": 2}),
    "pp2": (2, {"parallel.pipeline_parallel_size": 2}),
    "cp2": (2, {"parallel.context_parallel_size": 2}),
    "recompute": (1, {"training.recompute": "full"}),
}
DEEP = ("one", "tp2", "pp2", "cp2", "recompute")


def by_task(logits_TE: Tensor, *, top_k: int, task_ids: Tensor) -> Routing:
    """Expert 0 for a token of no known task, and one for each task."""
    weights_T1 = logits_TE.softmax(-1).amax(-1, keepdim=True)
    return Routing.of_indices(task_ids.unsqueeze(-1) + 1, weights_T1, logits_TE.shape[-1])


def source(place: Path, number: int) -> Path:
    return place / f"source{number}"


def write_sources(place: Path) -> None:
    from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset

    for number in range(len(WEIGHTS)):
        drawn = np.random.default_rng(number)
        writer = open_indexed_dataset(source(place, number), 512)
        for _ in range(40):
            writer.add_document(drawn.integers(1, 500, size=100).tolist())
        writer.finalize()


def train(place: Path, layout: str) -> None:
    """On every rank."""
    words = [
        word
        for number, weight in enumerate(WEIGHTS)
        for word in (repr(weight), str(source(place, number)))
    ]
    job = Job(
        run_dir=place / layout,
        overrides={**SHAPE, **LAYOUTS[layout][1]},
        blend=tuple(words),
        tasks=TASKS,
    )
    with registered_router("by_task", by_task):
        run_on_this_rank([job])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """The sources, and a run of each layout on them."""
    folder: Path = tmp_path_factory.mktemp("tasks")
    run_distributed(write_sources, folder, world_size=1)
    for layout in chosen("layout"):
        run_distributed(train, folder, layout, world_size=LAYOUTS[layout][0])
    return folder


@pytest.mark.parametrize(
    "layout", ["ep2", *(pytest.param(it, marks=pytest.mark.deep) for it in DEEP)]
)
def test_a_router_is_told_the_task_of_every_token(layout: str, place: Path) -> None:
    total = np.zeros(4, dtype=np.int64)
    for snapshot in read_routing(place / layout / ROUTING_FILE):
        first, *others = snapshot.tokens_per_expert
        assert first.sum() == BATCH * SEQUENCE
        assert (first % SEQUENCE == 0).all()  # samples are whole
        assert all((first == other).all() for other in others)
        total += first
        # Each task has an expert of its own, so that its counts are known.
        alone = np.diag(first)[1:3]
        assert list(snapshot.by_task) == ["first", "second"]
        for found, of_task in zip(snapshot.by_task.values(), alone, strict=True):
            assert (found == of_task).all()
    profile = RoutingProfile.from_snapshots(read_routing(place / layout / ROUTING_FILE))
    profile.save(place / "profile.json")
    again = RoutingProfile.load(place / "profile.json")
    assert (sum(again.by_task.values()) == again.tokens_per_expert).all()
    # The second source alone is of the second task, with half of the weight.
    assert total.tolist() == [0, *(STEPS * BATCH * SEQUENCE // 2,) * 2, 0]


def test_a_plain_model_is_told_the_tasks_of_its_rows() -> None:
    with registered_router("by_task", by_task):
        model = MoEModel(
            hidden_size=32, num_experts=4, experts_per_token=1, num_layers=1, router_type="by_task"
        )
        tokens = torch.randint(0, 100, (2, 16))
        (info,) = model(tokens, task_ids=torch.tensor([1, 2])).routing
        assert info.indices[0].unique().tolist() == [2]
        assert info.indices[1].unique().tolist() == [3]
        (info,) = model(tokens).routing
        assert info.indices.unique().tolist() == [0]
