"""A router that only this file knows trains under every layout, with telemetry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.routing import Routing, register_router
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing import RouterError, check_router
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_on_this_rank, step_records

pytestmark = pytest.mark.distributed

# --- the routers: all that their author writes ---------------------------------------------------


@register_router("sharp")
def route_sharp(logits_TE: torch.Tensor, *, top_k: int, sharpness: float = 1.0) -> Routing:
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


@register_router("above_average", fixed_number=False)
def route_above_average(logits_TE: torch.Tensor, *, top_k: int) -> Routing:
    probs_TE = logits_TE.softmax(-1)
    return Routing.of_map(probs_TE, probs_TE > 1 / logits_TE.shape[-1])


# --- the runs ------------------------------------------------------------------------------------

STEPS, BATCH, SEQUENCE, TOP_K, EXPERTS = 3, 8, 32, 2, 4
TOKENS = BATCH * SEQUENCE
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH),
    "training.precision": "fp32",
    "data.sequence_length": SEQUENCE,
}
ROUTERS: dict[str, Any] = {
    "sharp": {"moe.router": {"name": "sharp", "sharpness": 2.0}},
    "above_average": {"moe.router": "above_average"},
    "above_average_with_capacity": {"moe.router": "above_average", "moe.capacity_factor": 1.0},
}
TP2 = {"parallel.tensor_parallel_size": 2}
EP2 = {"parallel.expert_tensor_parallel_size": 1, "parallel.expert_parallel_size": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": TP2,
    "tp2-ep2": {
        **TP2,
        "parallel.expert_tensor_parallel_size": 1,
        "parallel.expert_parallel_size": 2,
    },
}
"""Of two processes; `test_routers.py` has more."""


def train(jobs: Sequence[Job]) -> None:
    """On every rank, which has imported this file, and so knows the routers."""
    run_on_this_rank(jobs)


# --- the tests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("routers")
    jobs = [
        Job(run_dir=place / f"{name}-{layout}", overrides={**SHAPE, **router, **sizes})
        for name, router in ROUTERS.items()
        for layout, sizes in LAYOUTS.items()
    ]
    run_distributed(train, jobs, world_size=2)
    return place


def losses(run: Path) -> list[float]:
    return [record.loss for record in step_records(run)]


@pytest.mark.deep
@pytest.mark.parametrize("router", ROUTERS)
def test_it_trains_alike_wherever_its_experts_are(router: str, runs: Path) -> None:
    together, spread = (losses(runs / f"{router}-{layout}") for layout in LAYOUTS)
    assert len(together) == STEPS
    assert spread == pytest.approx(together, rel=1e-5)
    assert spread[-1] < spread[0]


@pytest.mark.deep
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("router", ["above_average", "above_average_with_capacity"])
def test_what_a_router_asked_for_is_counted(router: str, layout: str, runs: Path) -> None:
    for snapshot in read_routing(runs / f"{router}-{layout}" / ROUTING_FILE):
        assert snapshot.tokens == TOKENS
        kept = snapshot.tokens_per_expert.sum(axis=1)
        assert (snapshot.assigned == kept + snapshot.dropped).all()
        assert (snapshot.assigned != TOKENS * TOP_K).all()
        assert (snapshot.dropped > 0).any() == ("capacity" in router)


@pytest.mark.deep
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fixed_number_of_experts_is_counted(layout: str, runs: Path) -> None:
    for snapshot in read_routing(runs / f"sharp-{layout}" / ROUTING_FILE):
        assert snapshot.tokens == TOKENS
        assert (snapshot.tokens_per_expert.sum(axis=1) == TOKENS * TOP_K).all()


def test_it_runs_alone() -> None:
    torch.manual_seed(0)
    model = MoEModel(hidden_size=32, num_experts=4, num_layers=1, router_type="above_average")
    output = model(torch.randint(0, 100, (2, 8)))
    (info,) = output.routing
    assert int(info.tokens_per_expert.sum()) == int((info.indices >= 0).sum())
    assert (info.indices >= 0).sum(-1).unique().numel() > 1


def test_the_suite_for_users_checks_it_in_the_engines() -> None:
    check_router("sharp", engines=("tp2",), sharpness=2.0)


OWN = """
from moe_megatron.routing import Routing

def sharper(logits_TE, *, top_k: int, sharpness: float = 2.0):
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])
"""


def test_it_checks_a_file_that_no_process_has_imported(tmp_path: Path) -> None:
    file = tmp_path / "my_router.py"
    file.write_text(OWN)
    check_router(f"{file}:sharper", engines=("recompute",), sharpness=3.0)
    file.write_text(OWN.replace("logits_TE).", "logits_TE.detach())."))
    with pytest.raises(RouterError, match=r"'my_router.py:sharper' \(.*line 4.*no gradient"):
        check_router(f"{file}:sharper")
