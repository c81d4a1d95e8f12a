"""Experts of a domain get the tokens of its source alone, wherever they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import few_steps

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS, BATCH, SEQUENCE, TOP_K, EXPERTS, DOMAINS, SHARED = 4, 8, 32, 2, 8, 2, 2
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH),
    "data.sequence_length": SEQUENCE,
    "data.split": "100,0,0",
    "moe.num_experts": EXPERTS,
    "moe.router": {"name": "specialised", "domains": DOMAINS, "shared": SHARED},
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "ep2": (2, {"parallel.expert_parallel_size": 2}),
    "tp2": (2, {"parallel.tensor_parallel_size": 2}),
    "pp2": (2, {"parallel.pipeline_parallel_size": 2}),
}


def write_sources(place: Path) -> tuple[str, ...]:
    """Two sources, the second with three times the weight; weights and prefixes by turns."""
    from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset

    words = []
    for number, weight in enumerate((0.25, 0.75)):
        drawn = np.random.default_rng(number)
        prefix = place / f"source{number}"
        writer = open_indexed_dataset(prefix, 512)
        for _ in range(40):
            writer.add_document(drawn.integers(1, 500, size=100).tolist())
        writer.finalize()
        words += [repr(weight), str(prefix)]
    return tuple(words)


def train(place: Path, layout: str, domains: int = DOMAINS) -> None:
    """On every rank."""
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import engine
    from moe_megatron.mcore.loop.job import TrainingJob
    from moe_megatron.run.machine import choose_machine
    from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
    from moe_megatron.telemetry.sinks.sink_set import SinkSet

    more = {**LAYOUTS[layout][1], "moe.router.domains": domains}
    config = apply_overrides(load_config("test_tiny"), {**SHAPE, **more})
    sinks = SinkSet([MetricsLog(), RoutingLog()]) if world.rank() == 0 else None
    job = TrainingJob(
        config=config,
        data_paths=tuple(
            word
            for number, weight in enumerate((0.25, 0.75))
            for word in (repr(weight), str(place / f"source{number}"))
        ),
        data_cache=place / f"cache-{layout}",
        vocab_size=512,
        end_of_document=0,
        run_dir=place / layout,
        sinks=sinks,
    )
    engine.run(job, choose_machine(config).settings)
    if sinks is not None:
        sinks.close()
    world.leave()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """The sources, and a run of each layout on them."""
    folder: Path = tmp_path_factory.mktemp("domains")
    run_distributed(write_sources, folder, world_size=1)
    for layout in {"one", *chosen("layout")}:
        run_distributed(train, folder, layout, world_size=LAYOUTS[layout][0])
    return folder


def losses(run: Path) -> list[float]:
    return [it.loss for it in read_metrics(run / METRICS_FILE) if it.loss is not None]


@pytest.mark.parametrize(
    "layout",
    ["ep2", *(pytest.param(it, marks=pytest.mark.deep) for it in ("tp2", "pp2"))],
)
def test_it_trains_alike_wherever_its_experts_are(layout: str, place: Path) -> None:
    assert len(losses(place / "one")) == STEPS
    assert losses(place / layout) == pytest.approx(losses(place / "one"), rel=1e-5)
    one, other = (list(read_routing(place / it / ROUTING_FILE)) for it in ("one", layout))
    for first, second in zip(one, other, strict=True):
        assert (first.tokens_per_expert == second.tokens_per_expert).all()


def test_a_group_gets_at_most_what_its_source_has(place: Path) -> None:
    """Two of eight samples are from the first source; without groups it would get half."""
    width = (EXPERTS - SHARED) // DOMAINS
    of_first = 0
    for snapshot in read_routing(place / "one" / ROUTING_FILE):
        counts = snapshot.tokens_per_expert
        assert (counts.sum(axis=1) == BATCH * SEQUENCE * TOP_K).all()
        groups = counts[:, :width].sum(axis=1), counts[:, width : 2 * width].sum(axis=1)
        of_first += int(groups[0].max())
        # what the second source has is its own group's and the shared experts', and nobody else's
        assert (groups[0] <= BATCH // 4 * SEQUENCE * TOP_K + SEQUENCE * TOP_K).all()
        assert (groups[1] > groups[0]).all()
    assert of_first > 0


def test_another_number_of_sources_is_refused(place: Path) -> None:
    with pytest.raises(Exception, match=r"of which data.paths gives 2, and moe.router.domains is"):
        run_distributed(train, place, "one", 3, world_size=1)


def test_a_plain_model_is_told_the_domains_of_its_rows() -> None:
    torch.manual_seed(0)
    router = {"domains": DOMAINS, "shared": SHARED}
    model = MoEModel(
        hidden_size=32, num_experts=EXPERTS, num_layers=1, router_type="specialised", router=router
    )
    tokens = torch.randint(0, 100, (2, 16))
    (info,) = model(tokens, domain_ids=torch.tensor([0, 1])).routing
    assert set(info.indices[0].flatten().tolist()) <= {0, 1, 2, 6, 7}
    assert set(info.indices[1].flatten().tolist()) <= {3, 4, 5, 6, 7}
    (info,) = model(tokens).routing
    assert len(set(info.indices.flatten().tolist())) > 5
