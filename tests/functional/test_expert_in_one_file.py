"""An expert that only this file knows trains under every layout, with checkpoints and telemetry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_megatron import MoEModel
from moe_megatron.experts import Expert, register_expert
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_on_this_rank

pytestmark = pytest.mark.distributed

# --- the expert: all that its author writes ------------------------------------------------------


@register_expert("sine")
class SineExpert(Expert):
    def __init__(self, hidden_size: int, intermediate_size: int, frequency: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("frequency", torch.tensor([frequency]))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.sin(self.frequency * self.up(self.norm(x)))
        output: Tensor = self.scale * self.down(inner)
        return output


# --- the runs ------------------------------------------------------------------------------------

STEPS, HALF, BATCH, SEQUENCE, TOP_K = 4, 2, 8, 32, 2
TOKENS = BATCH * SEQUENCE
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH),
    "training.precision": "fp32",
    "data.sequence_length": SEQUENCE,
    "checkpoint.save_interval": HALF,
    "moe.expert": {"name": "sine", "frequency": 2.0},
}
EP2 = {"parallel.expert_parallel_size": 2}
TP2_ETP1 = {"parallel.tensor_parallel_size": 2, "parallel.expert_tensor_parallel_size": 1}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "ep2": (2, EP2),
    "tp2-ep2": (2, {**TP2_ETP1, **EP2}),
    "pp2": (2, {"parallel.pipeline_parallel_size": 2}),
}


def job(run_dir: Path, **overrides: Any) -> Job:
    return Job(run_dir=run_dir, overrides={**SHAPE, **overrides})


def train(jobs: Sequence[Job]) -> None:
    """On every rank, which has imported this file, and so knows the expert."""
    run_on_this_rank(jobs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout to its end; half of a run with the experts apart, resumed together, and back."""
    place: Path = tmp_path_factory.mktemp("experts")
    half = {"megatron.exit-interval": HALF}
    together = job(place / "ep2, then one", **{"checkpoint.load": str(place / "half/checkpoints")})
    jobs = [job(place / name, **sizes) for name, (size, sizes) in LAYOUTS.items() if size == 2]
    run_distributed(train, [*jobs, job(place / "half", **half, **EP2)], world_size=2)
    run_distributed(train, [job(place / "one"), together], world_size=1)
    apart = {
        "checkpoint.load": str(place / "one" / "checkpoints"),
        "training.train_steps": STEPS + 1,
    }
    run_distributed(train, [job(place / "one, then ep2", **apart, **EP2)], world_size=2)
    run_distributed(train, [job(place / "one, then one", **apart)], world_size=1)
    return place


def losses(run: Path) -> list[float]:
    return [it.loss for it in read_metrics(run / METRICS_FILE) if it.loss is not None]


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_it_trains_alike_wherever_its_experts_are(layout: str, runs: Path) -> None:
    one = losses(runs / "one")
    assert len(one) == STEPS
    assert losses(runs / layout) == pytest.approx(one, rel=1e-5)
    assert one[-1] < one[0]


@pytest.mark.deep
def test_a_run_goes_on_with_the_experts_elsewhere(runs: Path) -> None:
    assert losses(runs / "ep2, then one") == pytest.approx(losses(runs / "one")[HALF:], rel=1e-5)
    apart, together = losses(runs / "one, then ep2"), losses(runs / "one, then one")
    assert len(apart) == 1
    assert apart == pytest.approx(together, rel=1e-5)


@pytest.mark.deep
@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_tokens_are_counted(layout: str, runs: Path) -> None:
    snapshots = list(read_routing(runs / layout / ROUTING_FILE))
    assert len(snapshots) == STEPS
    for snapshot in snapshots:
        assert snapshot.tokens == TOKENS
        assert (snapshot.tokens_per_expert.sum(axis=1) == TOKENS * TOP_K).all()


def test_it_runs_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MoEModel(
        hidden_size=32, num_experts=4, num_layers=1, expert={"name": "sine", "frequency": 3.0}
    )
    tokens = torch.randint(0, 100, (2, 8))
    output = model(tokens, labels=tokens)
    output.loss.backward()
    assert model.layers[0].moe.experts["3"].scale.grad is not None
    model.save_pretrained(tmp_path / "model")
    again = MoEModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again(tokens).logits, model.eval()(tokens).logits)
    assert again.moe_config.expert.options == {"frequency": 3.0}
