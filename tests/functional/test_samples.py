"""Samples of a run: which experts its tokens choose together, the same under every layout."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_megatron.mcore.layers.layer_numbers import number_of
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE, read_routing
from moe_megatron.telemetry.sinks.sample_files import (
    read_pairs,
    read_sample_head,
    read_top_tokens,
    sample_paths,
)
from moe_megatron.telemetry.values.top_tokens import MOST_TOKENS
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_job, run_jobs

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

BIASED = {
    "moe.expert_bias": True,
    "moe.expert_bias_update_rate": 0.01,
    "moe.load_balancing": "none",
    "moe.router.score_function": "sigmoid",
}
SHAPE: dict[str, Any] = {
    "model.num_layers": 4,
    "telemetry.sample_interval": 2,
    "telemetry.sample_tokens": True,
    **BIASED,
    **few_steps(3, micro_batch=2),
}
LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "dp2": {},
    "ep2": {"parallel.expert_parallel_size": 2},
    "pp2": {"parallel.pipeline_parallel_size": 2},
    "vpp2": {"parallel.pipeline_parallel_size": 2, "parallel.virtual_pipeline_stages": 2},
    "tp2": {"parallel.tensor_parallel_size": 2},
    "cp2": {"parallel.context_parallel_size": 2},
    "pp2_recompute": {"parallel.pipeline_parallel_size": 2, "training.recompute": "full"},
    "sparse_vpp2": {
        "parallel.pipeline_parallel_size": 2,
        "parallel.virtual_pipeline_stages": 2,
    },
    "ahead_pp2": {"parallel.pipeline_parallel_size": 2},
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    # Both MoE layers are on the first stage, in two chunks, and what is between them is not.
    "sparse": {"moe.layer_frequency": (1, 0, 1, 0)},
    "ahead": {"model.num_prediction_layers": 1},
}
"""Models of their own, by how the names of layouts begin; `single` is the usual one."""
ALWAYS = {"vpp2", "ep2"}


class Watching(Callback):
    """Keeps, by other means, what the routers of one process did in the step that is sampled."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._handles: list[Any] = []
        self.model: list[Any] = []
        self.maps: dict[int, list[torch.Tensor]] = {}
        self.bias: dict[int, list[float]] = {}
        self.ids: list[torch.Tensor] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self.model = model

    def on_step_start(self, step: int) -> None:
        if step == self._step:
            self._handles = [
                router.register_forward_hook(self._keep, always_call=False)
                for router in _routers(self.model)
            ]
            self._handles += [
                module.register_forward_hook(lambda _, given, out: self.ids.append(given[0].t()))
                for part in self.model
                for name, module in part.named_modules()
                if name.endswith("word_embeddings")
            ]

    def _keep(self, router: MeasuredRouter, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self.maps.setdefault(number_of(router), []).append(output[1].clone())

    def on_step_end(self, event: StepEnd) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if event.step == self._step:
            self.bias = {number_of(it): it.expert_bias.tolist() for it in _routers(self.model)}


def _routers(model: list[Any]) -> list[MeasuredRouter]:
    return [it for part in model for it in part.modules() if isinstance(it, MeasuredRouter)]


def _watched(job: Job) -> tuple[dict[int, Any], dict[int, list[float]], list[int]]:
    from moe_megatron.mcore import world

    watching = Watching(2)
    run_job(job, (watching,))
    world.leave()
    maps = {n: [it.tolist() for it in found] for n, found in watching.maps.items()}
    return maps, watching.bias, torch.cat([it.reshape(-1) for it in watching.ids]).tolist()


def _tables(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    (path,) = sample_paths(run_dir).values()
    pairs = list(read_pairs(path))
    return (
        np.stack([it.together for it in pairs]),
        np.stack([it.flow for it in pairs if it.flow is not None]),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def single(root: Path) -> Any:
    return run_distributed(_watched, Job(run_dir=root / "single", overrides=SHAPE), world_size=1)[0]


def test_sample_counts_what_every_token_of_its_step_chose(single: Any, root: Path) -> None:
    maps, *_ = single
    (path,) = sample_paths(root / "single").values()
    head = read_sample_head(path)
    assert (head.step, head.layers, path.name) == (2, (1, 2, 3, 4), "0000002.jsonl")
    chosen = {n: [np.flatnonzero(row) for row in np.concatenate(maps[n])] for n in head.layers}
    assert head.tokens == len(chosen[1]) == 8 * 32
    together = np.zeros((4, head.num_experts, head.num_experts), int)
    flow = np.zeros((3, head.num_experts, head.num_experts), int)
    for layer in range(4):  # token by token, pair by pair
        for experts in chosen[layer + 1]:
            for one in experts:
                for other in experts:
                    together[layer, one, other] += 1
    for layer, (before, after) in enumerate(pairwise(range(1, 5))):
        for here, there in zip(chosen[before], chosen[after], strict=True):
            for one in here:
                for other in there:
                    flow[layer, one, other] += 1
    assert [it.tolist() for it in _tables(root / "single")] == [together.tolist(), flow.tolist()]
    snapshot = next(it for it in read_routing(root / "single" / ROUTING_FILE) if it.step == 2)
    assert np.diagonal(together, axis1=1, axis2=2).tolist() == snapshot.tokens_per_expert.tolist()


def test_bias_is_that_of_the_model_after_the_step(single: Any, root: Path) -> None:
    (path,) = sample_paths(root / "single").values()
    head, (_, bias, _) = read_sample_head(path), single
    assert head.expert_bias is not None
    assert dict(zip(head.layers, head.expert_bias.tolist(), strict=True)) == bias
    assert np.abs(head.expert_bias).max() > 0


def test_most_frequent_tokens_of_each_expert_are_counted_exactly(single: Any, root: Path) -> None:
    maps, _, ids = single
    (path,) = sample_paths(root / "single").values()
    for layer in range(1, 5):
        found = read_top_tokens(path, layer)
        assert found is not None
        rows = np.concatenate(maps[layer])
        everywhere = Counter(
            it for it, row in zip(ids, rows, strict=True) for _ in np.flatnonzero(row)
        )
        for expert in range(rows.shape[1]):
            mine = Counter(it for it, row in zip(ids, rows, strict=True) if row[expert])
            expected = sorted(mine.items(), key=lambda it: (-it[1], it[0]))[:MOST_TOKENS]
            kept = found.ids[expert] >= 0
            assert found.assigned[expert] == mine.total()
            assert [
                *zip(*(it[expert][kept].tolist() for it in (found.ids, found.counts)), strict=True)
            ] == expected
            assert found.in_layer[expert][kept].tolist() == [everywhere[it] for it, _ in expected]
            assert not found.counts[expert][~kept].any()


@pytest.mark.deep
def test_model_with_too_many_pairs_has_samples_of_its_bias_alone(root: Path) -> None:
    """As it is where CUDA graphs replay routers, which needs a GPU."""
    huge = {"model.num_layers": 1, "moe.num_experts": 1025, "moe.expert_hidden_size": 8}
    job = Job(run_dir=root / "huge", overrides={**SHAPE, **huge})
    run_jobs([job], world_size=1)
    (path,) = sample_paths(job.run_dir).values()
    head = read_sample_head(path)
    assert head.tokens == 8 * 32
    assert head.expert_bias is not None
    assert list(read_pairs(path)) == []
    tokens = read_top_tokens(path, 1)
    assert tokens is not None
    assert tokens.assigned.sum() == 8 * 32 * 2


def _model(layout: str) -> str:
    return layout.split("_")[0] if layout.split("_")[0] in MODELS else "single"


@pytest.fixture(scope="module")
def layouts(root: Path, single: Any, chosen: Callable[[str], list[str]]) -> Path:
    """Folders of runs in every layout, and of each other model in one process."""

    def job(name: str, layout: Mapping[str, Any]) -> Job:
        own = MODELS.get(_model(name), {})
        return Job(run_dir=root / name, overrides={**SHAPE, **own, **layout})

    names = chosen("layout")
    if others := [job(name, {}) for name in MODELS if name in map(_model, names)]:
        run_jobs(others, world_size=1)
    run_jobs([job(name, LAYOUTS[name]) for name in names], world_size=2)
    return root


@pytest.mark.parametrize(
    "layout",
    [pytest.param(it, marks=() if it in ALWAYS else pytest.mark.deep) for it in LAYOUTS],
)
def test_sample_is_the_same_under_every_layout(layout: str, layouts: Path) -> None:
    alone = layouts / _model(layout)
    for found, expected in zip(_tables(layouts / layout), _tables(alone), strict=True):
        # Rounding may move a token whose experts tie to seven digits: one token, and its pairs.
        assert np.abs(found - expected).sum() <= 8
        assert found.sum() == expected.sum() > 0
    mine, theirs = (
        read_sample_head(*sample_paths(it).values()) for it in (layouts / layout, alone)
    )
    assert mine.tokens == theirs.tokens == 8 * 32
    assert mine.expert_bias == pytest.approx(theirs.expert_bias)
    for layer in mine.layers:
        counts, alone_counts = (_counts(it, layer) for it in (layouts / layout, alone))
        assert (counts - alone_counts).total() + (alone_counts - counts).total() <= 8
        assert counts.total() > 0


def _counts(run_dir: Path, layer: int) -> Counter[tuple[str, int, int]]:
    """The numbers of a table of tokens, by what they are of."""
    (path,) = sample_paths(run_dir).values()
    found = read_top_tokens(path, layer)
    assert found is not None
    counts = Counter({("all", it, -1): int(n) for it, n in enumerate(found.assigned)})
    for expert, ids in enumerate(found.ids.tolist()):
        for place, token in enumerate(ids):
            if token >= 0:
                counts["expert", expert, token] = int(found.counts[expert, place])
                counts["layer", expert, token] = int(found.in_layer[expert, place])
    return counts
