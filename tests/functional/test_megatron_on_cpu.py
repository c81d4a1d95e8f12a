"""Training for real on the CPU: every routing option and layout, and nothing patched beside it.

The jobs of a world size share one group of processes, so each also shows that the runs before it
left nothing behind.
"""

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_jobs, step_records

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS, BATCH, SEQUENCE, TOP_K, EXPERTS = 3, 8, 32, 2, 4
TOKENS = BATCH * SEQUENCE
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH, micro_batch=4),
}
SHARED_AND_GROUPED: dict[str, Any] = {
    "moe.shared_expert_hidden_size": 64,
    "model.num_query_groups": 2,
    "model.qk_norm": True,
    "model.qk_norm_scope": "all_heads",
}
WITHOUT_LOSS = {
    "moe.load_balancing": "none",
    "moe.aux_loss_coef": 0,
}
EVERY_SECOND = {
    "model.num_layers": 4,
    "model.qk_norm": True,
    "moe.layer_frequency": [1, 0, 1, 0],
}
DROPS = {"moe.capacity_factor": 1.0}
CONTINUED = {**SHARED_AND_GROUPED, "training.train_steps": STEPS + 2}
SIGMOID = {"moe.router.score_function": "sigmoid"}

FIRST = "first"
"""Makes one step and a checkpoint, from which the continued runs start with the same weights.

With one seed, weights still depend on the layout, and on the CPU even on the micro-batch size.
"""

ONE: dict[str, dict[str, Any]] = {
    "base": {},
    "bf16": {"training.precision": "bf16"},
    "drops": DROPS,
    "drops_padded": {**DROPS, "moe.pad_to_capacity": True},
    "drops_by_position": {**DROPS, "moe.drop_policy": "position"},
    "expert_bias": {**SIGMOID, "moe.expert_bias": True},
    "sqrtsoftplus": {"moe.router.score_function": "sqrtsoftplus"},
    "seq_aux_loss": {"moe.load_balancing": "seq_aux_loss"},
    "global_aux_loss": {"moe.load_balancing": "global_aux_loss"},
    "sinkhorn": {"moe.load_balancing": "sinkhorn", "moe.aux_loss_coef": 0},
    "quantile_balancing": {"moe.load_balancing": "quantile_balancing", "moe.aux_loss_coef": 0},
    "groups": {"moe.router.expert_groups": 2, "moe.router.group_top_k": 1},
    "jitter": {"moe.input_jitter": 0.01},
    "recompute_full": {"training.recompute": "full"},
    "recompute_attention": {"training.recompute": "selective"},
    "recompute_moe": {"training.recompute": "selective", "megatron.recompute-modules": ["moe"]},
    "no_distributed_optimizer": {"parallel.distributed_optimizer": False},
    FIRST: {**CONTINUED, "checkpoint.save_interval": 1, "megatron.exit-interval": 1},
    "continued": CONTINUED,
    "one_batch": {**CONTINUED, **WITHOUT_LOSS, "training.micro_batch_size": BATCH},
    "accumulated": {**CONTINUED, **WITHOUT_LOSS, "training.micro_batch_size": 1},
    "every_second_layer": EVERY_SECOND,
    "dense": {"moe.num_experts": None},
    "evaluated": {"training.eval_interval": 2},
    "again": {},
}
TWO: dict[str, dict[str, Any]] = {
    "tp2_etp2": {
        **CONTINUED,
        "parallel.tensor_parallel_size": 2,
        "parallel.expert_tensor_parallel_size": 2,
    },
    "tp2_no_distributed_optimizer": {
        "parallel.tensor_parallel_size": 2,
        "parallel.distributed_optimizer": False,
    },
    "ep2_drops": {**DROPS, "parallel.expert_parallel_size": 2},
    "ep2_expert_bias": {**SIGMOID, "moe.expert_bias": True, "parallel.expert_parallel_size": 2},
    "ep2_recompute_moe": {
        "parallel.expert_parallel_size": 2,
        "training.recompute": "selective",
        "megatron.recompute-modules": ["moe"],
    },
    "dp2_bf16": {"training.precision": "bf16"},
    "dp2_global_aux_loss": {"moe.load_balancing": "global_aux_loss"},
    "dp2_overlap": {"megatron.overlap-grad-reduce": True, "megatron.overlap-param-gather": True},
    "pp2_every_second_layer": {**EVERY_SECOND, "parallel.pipeline_parallel_size": 2},
    "pp2_first_stage_only": {
        "model.num_layers": 4,
        "moe.layer_frequency": [1, 1, 0, 0],
        "parallel.pipeline_parallel_size": 2,
    },
    "vpp2": {
        "model.num_layers": 4,
        "parallel.pipeline_parallel_size": 2,
        "parallel.virtual_pipeline_stages": 2,
    },
    "tp2_dense_without_sequence_parallel": {
        "moe.num_experts": None,
        "parallel.tensor_parallel_size": 2,
        "parallel.sequence_parallel": False,
    },
}
DEEP = {
    *("drops_by_position", "sqrtsoftplus", "groups", "jitter", "recompute_attention"),
    *("sinkhorn", "quantile_balancing", "seq_aux_loss"),
    *("tp2_no_distributed_optimizer", "ep2_expert_bias", "pp2_first_stage_only", "vpp2"),
}
"""What differs in one field from others, or what `test_parallel_parity.py` trains, too."""
LAYERS = {
    "every_second_layer": (1, 3),
    "pp2_every_second_layer": (1, 3),
    "vpp2": (1, 2, 3, 4),
}
NAMES = [name for name in (*ONE, *TWO) if name != FIRST]
WITH_EXPERTS = [name for name in NAMES if "dense" not in name]


def named(names: Iterable[str]) -> list[Any]:
    return [pytest.param(it, marks=pytest.mark.deep if it in DEEP else ()) for it in names]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cpu")


def jobs(root: Path, table: dict[str, dict[str, Any]], deep: Iterable[str]) -> list[Job]:
    """All of a table, of deep ones those that are asked for."""
    load = {"checkpoint.load": str(root / FIRST / "checkpoints")}
    return [
        Job(
            run_dir=root / name,
            overrides={
                **SHAPE,
                **change,
                **(load if change.items() >= CONTINUED.items() and name != FIRST else {}),
            },
        )
        for name, change in table.items()
        if name not in DEEP or name in deep
    ]


@pytest.fixture(scope="module")
def one(root: Path, chosen: Callable[[str], list[str]]) -> Path:
    """All jobs of one process, on a machine without a C++ compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent))
        patch.delenv("CC", raising=False)
        patch.delenv("CXX", raising=False)
        assert not any(map(shutil.which, ("gcc", "g++", "cc", "c++", "clang", "nvcc", "make")))
        run_jobs(jobs(root, ONE, chosen("name")), world_size=1)
    return root


@pytest.fixture(scope="module")
def runs(one: Path, chosen: Callable[[str], list[str]]) -> Path:
    """The folder of all runs."""
    run_jobs(jobs(one, TWO, chosen("name")), world_size=2)
    return one


def losses(run_dir: Path) -> dict[int, float]:
    return {record.step: record.loss for record in step_records(run_dir) if record.loss is not None}


def routing(run_dir: Path) -> list[RoutingSnapshot]:
    return list(read_routing(run_dir / ROUTING_FILE))


@pytest.mark.parametrize("name", named(NAMES))
def test_run_ends_and_its_loss_falls(name: str, runs: Path) -> None:
    curve = list(losses(runs / name).values())
    assert len(curve) >= STEPS
    assert np.isfinite(curve).all()
    assert curve[-1] < curve[0] - 0.1
    assert all(record.grad_norm and record.grad_norm > 0 for record in step_records(runs / name))
    assert not any(record.skipped for record in step_records(runs / name))


@pytest.mark.parametrize("name", named(WITH_EXPERTS))
def test_every_assignment_is_counted_once_or_dropped(name: str, runs: Path) -> None:
    snapshots = routing(runs / name)
    assert [s.step for s in snapshots] == list(losses(runs / name))
    for snapshot in snapshots:
        assert snapshot.layers == LAYERS.get(name, (1, 2))
        assert snapshot.tokens == TOKENS
        total = snapshot.tokens_per_expert.sum(axis=1) + snapshot.dropped
        assert total.tolist() == [TOKENS * TOP_K] * len(snapshot.layers)
        assert snapshot.assigned.tolist() == total.tolist()
        assert (snapshot.tokens_per_expert >= 0).all()
        entropy = snapshot.per_layer["entropy"]
        assert ((entropy > 0) & (entropy <= np.log(EXPERTS) + 1e-6)).all()
        assert (snapshot.per_layer["z_loss"] > 0).all()
        if "drops" not in name:
            assert not snapshot.dropped.any()


@pytest.mark.parametrize("name", named(name for name in NAMES if "drops" in name))
def test_full_experts_drop_tokens_and_none_takes_more_than_its_capacity(
    name: str, runs: Path
) -> None:
    for snapshot in routing(runs / name):
        assert (snapshot.dropped > 0).all()
        # With a capacity factor of 1 an expert takes at most an even share.
        assert snapshot.tokens_per_expert.max() <= TOKENS * TOP_K // EXPERTS


def test_padding_to_capacity_changes_neither_counts_nor_losses(one: Path) -> None:
    assert losses(one / "drops_padded") == pytest.approx(losses(one / "drops"), rel=1e-6)
    for padded, plain in zip(routing(one / "drops_padded"), routing(one / "drops"), strict=True):
        assert padded.tokens_per_expert.tolist() == plain.tokens_per_expert.tolist()


@pytest.mark.parametrize(
    "name",
    named(("recompute_full", "recompute_attention", "recompute_moe", "no_distributed_optimizer")),
)
def test_saving_memory_changes_neither_counts_nor_losses(name: str, one: Path) -> None:
    assert losses(one / name) == pytest.approx(losses(one / "base"), rel=1e-6)
    for ours, base in zip(routing(one / name), routing(one / "base"), strict=True):
        assert ours.tokens_per_expert.tolist() == base.tokens_per_expert.tolist()
        assert ours.per_layer["entropy"] == pytest.approx(base.per_layer["entropy"], rel=1e-6)


def test_second_run_in_a_process_repeats_the_first_to_the_bit(one: Path) -> None:
    """The first had a fresh process; before the second it ran everything else."""
    assert losses(one / "again") == losses(one / "base")
    for again, base in zip(routing(one / "again"), routing(one / "base"), strict=True):
        assert again.tokens_per_expert.tolist() == base.tokens_per_expert.tolist()


def test_gradient_accumulation_gives_the_losses_of_the_whole_batch(one: Path) -> None:
    assert losses(one / "accumulated") == pytest.approx(losses(one / "one_batch"), rel=1e-5)


@pytest.mark.parametrize("name", ["bf16", "dp2_bf16"])
def test_bf16_stays_near_fp32(name: str, runs: Path) -> None:
    bf16, fp32 = losses(runs / name), losses(runs / "base")
    assert bf16 != fp32
    assert bf16 == pytest.approx(fp32, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "single"),
    [("dp2_bf16", "bf16"), ("dp2_overlap", "base"), ("dp2_global_aux_loss", "global_aux_loss")],
)
def test_data_parallel_run_follows_the_single_process(name: str, single: str, runs: Path) -> None:
    assert losses(runs / name) == pytest.approx(losses(runs / single), rel=1e-4)


def test_query_norms_and_shared_experts_agree_under_tensor_parallelism(runs: Path) -> None:
    """Norms inside attention have gradients that every tensor parallel rank must sum."""
    assert losses(runs / "tp2_etp2") == pytest.approx(losses(runs / "continued"), rel=1e-4)


@pytest.mark.parametrize("name", ["dense", "tp2_dense_without_sequence_parallel"])
def test_dense_model_reports_steps_and_no_routing(name: str, runs: Path) -> None:
    assert list(losses(runs / name)) == [1, 2, 3]
    path = runs / name / ROUTING_FILE
    assert not path.exists() or path.read_text() == ""


@pytest.mark.deep
@pytest.mark.parametrize("name", ["pp2_first_stage_only"])
def test_layers_of_one_stage_only_are_numbered_globally(name: str, runs: Path) -> None:
    assert {s.layers for s in routing(runs / name)} == {(1, 2)}


def test_evaluations_are_reported_beside_the_steps(one: Path) -> None:
    records = read_metrics(one / "evaluated" / METRICS_FILE)
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    at = [(e.step, e.split) for e in evaluations if e.split == "validation"]
    assert at == [(2, "validation"), (3, "validation")]
    assert losses(one / "evaluated") == losses(one / "base")
    # Validation is not training: its tokens are not counted.
    assert {s.tokens for s in routing(one / "evaluated")} == {TOKENS}


# --- nothing outside megatron.* sees a patch -----------------------------------------------------


def _watched() -> dict[str, Any]:
    """Everything that must stay as it was, by name."""
    import torch
    import torch.distributed
    import torch.optim

    places: dict[str, Any] = {
        "torch": torch,
        "torch.cuda": torch.cuda,
        "torch.cuda.random": torch.cuda.random,
        "torch.cuda.nvtx": torch.cuda.nvtx,
        "torch.distributed": torch.distributed,
        "torch.optim": torch.optim,
        "torch.Tensor": torch.Tensor,
        "torch.nn.Module": torch.nn.Module,
        "torch.nn.Parameter": torch.nn.Parameter,
        "torch.optim.AdamW": torch.optim.AdamW,
    }
    return {f"{p}.{n}": value for p, holder in places.items() for n, value in vars(holder).items()}


def look_at_torch(run_dir: Path) -> dict[str, Any]:
    """What torch looks like from outside, before and after Megatron and a run."""
    import types

    import torch

    # Parts of torch that torch loads when needed, and that themselves add to it.
    import torch._dynamo
    import torch.distributed.tensor

    before = _watched()
    stages: dict[str, Any] = {}

    def compare(stage: str) -> None:
        after = _watched()
        volatile = ("__warningregistry__", "__annotations__", "__annotate__")
        stages[stage] = {
            "changed": [
                name
                for name, value in before.items()
                if after.get(name, None) is not value and not name.endswith(volatile)
            ],
            "changed_functions": [
                name
                for name, value in before.items()
                if callable(value) and after.get(name, None) is not value
            ],
            "new": [
                name
                for name, value in after.items()
                if name not in before
                and not isinstance(value, types.ModuleType)
                and not name.endswith(volatile)
            ],
            "cuda": torch.cuda.is_available(),
        }

    from moe_megatron.mcore import world
    from moe_megatron.mcore.cpu import emulation
    from moe_megatron.mcore.loop import engine
    from moe_megatron.run.machine import choose_machine

    stages["hook"] = emulation.is_installed()
    compare("import")
    config = Job(run_dir=run_dir, overrides=SHAPE).config
    job = engine.TrainingJob(
        config=config,
        data_paths=(),
        data_cache=run_dir / "cache",
        vocab_size=512,
        end_of_document=0,
        run_dir=run_dir,
    )
    stages["steps"] = engine.run(job, choose_machine(config).settings).steps
    compare("run")
    views, real = [], []
    for name, module in list(sys.modules.items()):
        seen = vars(module).get("torch") if module else None
        if isinstance(seen, types.ModuleType) and seen.__name__ == "torch":
            (real if seen is torch else views).append(name)
    stages["views"] = views
    stages["real"] = [name for name in real if name.startswith("megatron.")]
    stages["ours"] = [name for name in real if name.startswith("moe_megatron.mcore.")]
    stages["written"] = torch.ones(1).type(), torch.zeros(1, device="cpu").device.type
    world.leave()
    return stages


@pytest.fixture(scope="module")
def isolation(root: Path) -> dict[str, Any]:
    """What torch looked like from outside, after the import and after a run."""
    without_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    (found,) = run_distributed(
        look_at_torch, root / "isolation", world_size=1, environment=without_gpu, fresh=True
    )
    assert found["steps"] == STEPS
    return found


@pytest.mark.parametrize("stage", ["import", "run"])
def test_nothing_of_torch_is_changed_for_others(stage: str, isolation: dict[str, Any]) -> None:
    assert isolation[stage]["changed"] == []
    assert isolation[stage]["new"] == []
    assert isolation[stage]["cuda"] is False


def test_every_megatron_module_and_no_other_has_the_view(isolation: dict[str, Any]) -> None:
    assert isolation["hook"] is True
    assert len(isolation["views"]) > 100
    assert [n for n in isolation["views"] if not n.startswith("megatron.")] == []
    assert isolation["real"] == []
    assert "moe_megatron.mcore.loop.forward" in isolation["ours"]


def test_tensors_of_others_keep_their_type(isolation: dict[str, Any]) -> None:
    assert isolation["written"] == ("torch.FloatTensor", "cpu")
