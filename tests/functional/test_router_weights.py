"""First weights of gates, and states of routers, are the same under every layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_job

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SHAPE: dict[str, Any] = {
    **few_steps(3),
}
BF16 = {"training.precision": "bf16"}
ONE_WITHOUT = {
    "moe.router": {"name": "loss_free", "update_rate": 0.05},
    "moe.layer_frequency": [0, 1],
}
CASES: dict[str, dict[str, Any]] = {
    "cosine": {**BF16, "moe.router": "cosine"},
    "noisy_top_k": {**BF16, "moe.router": "noisy_top_k"},
    "stage without experts": ONE_WITHOUT,
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tp2": (2, {"parallel.tensor_parallel_size": 2}),
    "pp2": (2, {"parallel.pipeline_parallel_size": 2}),
    "ep2": (2, {"parallel.expert_parallel_size": 2}),
}
type Weights = dict[str, torch.Tensor]


def weights_of(
    place: Path, jobs: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Weights, Weights]]:
    """On every rank: the whole weights before and after training, of each job."""
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop.callbacks import Callback
    from moe_megatron.mcore.state.weights import collect_weights

    found: dict[str, tuple[Weights, Weights]] = {}
    for name, overrides in jobs.items():
        architecture = apply_overrides(load_config("test_tiny"), overrides).architecture
        seen: list[Weights] = []

        class Collect(Callback):
            def on_train_start(
                self, model: list[Any], start_step: int, seen: Any = seen, of: Any = architecture
            ) -> None:
                seen.append(collect_weights(model, of))

            def on_train_end(
                self, model: list[Any], seen: Any = seen, of: Any = architecture
            ) -> None:
                seen.append(collect_weights(model, of))

        run_job(Job(run_dir=place / name, overrides=overrides), callbacks=(Collect(),))
        found[name] = (seen[0], seen[1])
    world.leave()
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By layout and case."""
    place, found = tmp_path_factory.mktemp("weights"), {}
    for world_size in (1, 2):
        names = [name for name, (ranks, _) in LAYOUTS.items() if ranks == world_size]
        jobs = {
            f"{case}-{name}": {**SHAPE, **CASES[case], **LAYOUTS[name][1]}
            for name in names
            for case in CASES
        }
        found |= run_distributed(weights_of, place, jobs, world_size=world_size)[0]
    return found


def of_routers(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if ".router." in name}


@pytest.mark.deep
@pytest.mark.parametrize("layout", ["tp2", "pp2", "ep2"])
@pytest.mark.parametrize("case", ["cosine", "noisy_top_k"])
def test_a_gate_begins_alike_in_bf16(case: str, layout: str, weights: dict[str, Any]) -> None:
    alone, shared = (of_routers(weights[f"{case}-{it}"][0]) for it in ("one", layout))
    assert len(alone) >= 4
    assert [name for name in alone if not torch.equal(alone[name], shared[name])] == []
    drawn = [value for name, value in alone.items() if name.endswith("router.weight")]
    assert all(torch.equal(value, value.bfloat16().float()) for value in drawn)
    assert all(value.std() > 0 for value in drawn)


@pytest.mark.deep
@pytest.mark.parametrize("layout", ["tp2", "pp2", "ep2"])
def test_a_stage_without_experts_does_not_disturb_the_state_of_others(
    layout: str, weights: dict[str, Any]
) -> None:
    (first, alone), (_, shared) = (weights[f"stage without experts-{it}"] for it in ("one", layout))
    assert list(of_routers(alone)) == [
        "layers.1.moe.router.weight",
        "layers.1.moe.router.state.bias",
    ]
    bias = "layers.1.moe.router.state.bias"
    assert not first[bias].any()
    assert alone[bias].abs().max() > 0
    assert torch.equal(alone[bias], shared[bias])
