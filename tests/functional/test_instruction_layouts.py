"""Instruction data in Megatron's loop: rows of several samples train as samples alone would.

The obvious twin has one sample in a row, and the rest padding. Losses, gradients, counts of tokens
and losses of the routers must be equal, under every layout, too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.data.instructions.encoder import chat_encoder
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import StoredSamples
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.shards import expand_sources
from moe_megatron.run.prepared_data import open_instruction_writer
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.telemetry.sinks.sample_files import read_pairs, sample_paths
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.testing.jobs import Job, run_jobs
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
LENGTH = 64
SHAPE: dict[str, Any] = {
    "model.num_layers": 4,
    "data.sequence_length": LENGTH,
    "training.train_steps": 3,
    "training.warmup_steps": 0,
    "training.micro_batch_size": 2,
    "training.global_batch_size": 8,
    "moe.aux_loss_coef": 0.05,
    "moe.z_loss_coef": 0.01,
    "telemetry.sample_interval": 1,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"parallel.expert_parallel_size": 2},
    "pp2": {"parallel.pipeline_parallel_size": 2},
    "tp2": {"parallel.tensor_parallel_size": 2},
    "vpp2": {
        "parallel.pipeline_parallel_size": 2,
        "parallel.virtual_pipeline_stages": 2,
    },
    "tp2_pp2": {"parallel.tensor_parallel_size": 2, "parallel.pipeline_parallel_size": 2},
    "recompute_ep2": {"parallel.expert_parallel_size": 2, "training.recompute": "full"},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned_positions": {
        "model.position_embedding": "learned_absolute",
        "model.max_position_embeddings": 128,
    },
    "latent_attention": {"model.latent_attention": {}},
    "sinks_and_windows": {"model.attention_sinks": True, "model.sliding_window": {"size": 5}},
    "capacity": {"moe.capacity_factor": 2.0},
    "bias": {
        "moe.expert_bias": True,
        "moe.load_balancing": "none",
        "moe.router.score_function": "sigmoid",
    },
}
DEEP = LAYOUTS.keys() - {"ep2", "pp2"}


def talks() -> list[dict[str, str]]:
    """Conversations that take more than half of 27 places each, and at most all of them."""
    words = "it is so and then more of this than that".split()
    return [
        {
            "prompt": f"{it}?",
            "completion": " ".join(words[(it + k) % 10] for k in range(it % 6 + 5)),
        }
        for it in range(24)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("instructions")


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    demo_tokenizer(vocab_size=512).save(root / "tok")
    (root / "tok" / "chat_template.jinja").write_text(TEMPLATE)
    source, prefix = root / "chat.jsonl", root / "chat"
    source.write_text("".join(json.dumps(row) + "\n" for row in talks()))
    tokenizer = load_tokenizer(root / "tok")
    encoder = chat_encoder("completion", tokenizer, expand_sources([source]))
    prepare_dataset([source], encoder, prefix, open_instruction_writer, progress=False)
    return prefix


def steps(run_dir: Path) -> list[StepRecord]:
    found = [it for it in read_metrics(run_dir / METRICS_FILE) if isinstance(it, StepRecord)]
    assert len(found) == SHAPE["training.train_steps"]
    return found


def same_steps(ours: list[StepRecord], theirs: list[StepRecord]) -> None:
    """Compare losses, gradients and losses of routers."""
    for our, their in zip(ours, theirs, strict=True):
        assert our.loss == pytest.approx(their.loss, rel=1e-5)
        assert our.grad_norm == pytest.approx(their.grad_norm, rel=1e-4)
        assert our.tokens > 0


def counts(run_dir: Path) -> list[Any]:
    """Tokens of each expert, of each layer, at each step."""
    return [
        snapshot.tokens_per_expert.tolist() for snapshot in read_routing(run_dir / ROUTING_FILE)
    ]


def samples(run_dir: Path) -> list[Any]:
    """Which experts tokens have together, and where they go next, of each layer, at each step."""
    tables = [list(read_pairs(path)) for path in sample_paths(run_dir).values()]
    together = [[it.together.diagonal().tolist() for it in layers] for layers in tables]
    assert together == counts(run_dir)  # and no padding
    return [
        [(it.together.tolist(), None if it.flow is None else it.flow.tolist()) for it in layers]
        for layers in tables
    ]


@pytest.fixture(scope="module")
def single(root: Path, data: Path) -> list[StepRecord]:
    run_jobs([Job(run_dir=root / "single", overrides=SHAPE, data=data)], world_size=1)
    return steps(root / "single")


@pytest.fixture(scope="module")
def layouts(root: Path, data: Path, chosen: Callable[[str], list[str]]) -> None:
    """Runs in every layout that a test asks for."""
    for world_size in (2, 4):
        jobs = [
            Job(run_dir=root / name, overrides={**SHAPE, **LAYOUTS[name]}, data=data)
            for name in chosen("name")
            if (name == "tp2_pp2") == (world_size == 4)
        ]
        if jobs:
            run_jobs(jobs, world_size=world_size)


@pytest.mark.parametrize(
    "name",
    [pytest.param(it, marks=pytest.mark.deep if it in DEEP else ()) for it in LAYOUTS],
)
def test_layouts_train_alike(name, root, layouts, single):
    same_steps(steps(root / name), single)
    assert counts(root / name) == counts(root / "single")
    assert samples(root / name) == samples(root / "single")
    assert single[0].loss != pytest.approx(single[-1].loss, rel=1e-3)


@pytest.mark.deep  # tests/unit/training/test_conversations.py compares with plain torch
@pytest.mark.parametrize("kind", KINDS)
def test_samples_in_one_row_train_as_each_in_its_own(kind, root, data):
    """All of them in one micro-batch, so that losses of routers are of the same tokens."""
    stored = StoredSamples(data)
    assert 2 * (stored.lengths.min() - 1) > 27
    assert stored.lengths.max() - 1 <= 27
    jobs = []
    for name, length in (("alone", 27), ("packed", 128)):
        number = len(packed_rows(stored, length).rows)
        assert number == len(stored) or name == "packed"
        batch = {"training.micro_batch_size": number, "training.global_batch_size": number}
        overrides = {**SHAPE, **KINDS[kind], **batch, "data.sequence_length": length}
        jobs.append(Job(run_dir=root / kind / name, overrides=overrides, data=data))
    assert jobs[1].overrides["training.global_batch_size"] <= len(stored) // 3
    run_jobs(jobs, world_size=1)
    alone, packed = (job.run_dir for job in jobs)
    same_steps(steps(packed), steps(alone))
    assert counts(packed) == counts(alone)
    assert samples(packed) == samples(alone)
    chosen = sum(sum(layer) for layer in counts(packed)[0])
    layers, top_k = len(counts(packed)[0]), jobs[0].config.moe.top_k
    assert chosen == layers * top_k * int((stored.lengths - 1).sum())  # and no padding
