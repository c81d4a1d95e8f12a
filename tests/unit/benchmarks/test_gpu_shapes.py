"""The runs of the GPU profile, as far as a machine without a GPU can tell: Megatron takes them.

Where Megatron asks the device or Transformer Engine whether they can, the answer is that of a
Hopper GPU with a current engine.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moe_megatron.mcore  # noqa: F401  # makes Megatron importable
from benchmarks.gpu_report import converted, telemetry_cost
from benchmarks.gpu_report.shapes import PRECISIONS, ROUTINGS, SHAPES, configuration
from benchmarks.gpu_report.stages import PROFILES
from benchmarks.telemetry_overhead import task
from moe_megatron.cli.pretrain import parse_options
from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.mcore.loop.arguments import RunPaths, megatron_argv, parse
from moe_megatron.mcore.loop.job import MachineSettings

PATHS = RunPaths(
    data=("1.0", "/data/text"),
    validation=(),
    data_cache="/cache",
    vocab_size=8192,
    end_of_document=0,
    checkpoints=None,
    load=None,
)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU with Transformer Engine, as far as Megatron's arguments ask; nothing is left behind."""
    from megatron.core.transformer import transformer_config
    from megatron.training import arguments, training

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(arguments.torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(transformer_config, "is_te_min_version", lambda *_, **__: True)
    try:
        yield
    finally:
        training.destroy_global_state()


def resolved(config: RunConfig) -> tuple[Any, Any]:
    """Megatron's arguments, and the configuration of the model that it makes of them."""
    from megatron.training.argument_utils import gpt_config_from_args

    config.validate(1)
    machine = MachineSettings(
        backend="nccl",
        transformer_impl="transformer_engine",
        precision=config.training.precision,
        grouped_gemm=True,
        accumulation_fusion=False,
    )
    # Megatron looks for the function of the engine, which is not there.
    without = apply_overrides(config, {"megatron.no-rope-fusion": True})
    args = parse(megatron_argv(without, machine, PATHS))
    return args, gpt_config_from_args(args)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("routing", sorted(ROUTINGS))
@pytest.mark.parametrize("shape", SHAPES["gpu"], ids=lambda shape: shape.name)
def test_every_shape_resolves_to_megatron(shape: Any, routing: str, precision: str) -> None:
    args, model = resolved(configuration(shape, routing, precision, "runs/x"))
    assert args.moe_router_force_load_balancing == (routing == "forced routing")
    assert (args.fp8, args.fp8_recipe == "tensorwise") == (
        ("hybrid", True) if precision == "fp8" else (None, False)
    )
    assert args.moe_router_padding_for_quantization == (precision == "fp8")
    assert not args.gradient_accumulation_fusion
    assert args.padded_vocab_size == 32000
    assert model.transformer.moe_grouped_gemm
    assert args.recompute_granularity is None


@pytest.mark.parametrize("shape", SHAPES["gpu"], ids=lambda shape: shape.name)
def test_states_of_a_shape_leave_room_in_an_h100(shape: Any) -> None:
    config = configuration(shape, "real routing", "bf16", "runs/x")
    model, moe = config.model, config.moe
    head, groups = model.attention_head_dim, model.key_value_heads
    experts = 3 * (moe.num_experts or 0) * (moe.expert_hidden_size or 0)
    attention = 2 * head * (model.num_attention_heads + groups)
    weights = model.hidden_size * (model.num_layers * (experts + attention) + 2 * 32000)
    assert 40 < 18 * weights / 2**30 < 60


@pytest.mark.usefixtures("hopper")
def test_telemetry_run_resolves_to_megatron() -> None:
    preset, changes, precision = telemetry_cost.SHAPES["gpu"]
    job = task(preset, dict(changes), steps=100, seconds=60, precision=precision)
    args, _ = resolved(apply_overrides(load_config(preset), job["overrides"]))
    assert (args.num_layers, args.num_experts) == (61, 256)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_main_job_resolves_to_megatron(precision: str) -> None:
    (stage,) = (s for s in PROFILES["gpu"].stages if s.name == f"main job, {precision}")
    words = stage.command[stage.command.index("train") + 1 :]
    own = words.index("--num-processes")
    options = parse_options([*words[:own], *words[own + 2 :]])
    config = apply_overrides(options.config, {"parallel.expert_parallel_size": 1})
    args, _ = resolved(config)
    assert args.bf16
    assert (args.fp8, args.train_iters) == ("hybrid" if precision == "fp8" else None, 250)


@pytest.mark.usefixtures("hopper")
def test_training_on_resolves_to_megatron(tmp_path: Path) -> None:
    from moe_megatron.checkpoint.convert import Execution, import_checkpoint
    from moe_megatron.config import CONFIG_FILE

    converted.write_model("tiny", tmp_path / "hf")
    report = import_checkpoint(
        tmp_path / "hf", tmp_path / "megatron", execution=Execution(progress=False)
    )
    config = load_config(report.destination / CONFIG_FILE)
    args, _ = resolved(apply_overrides(config, converted.RUNS["gpu"]))
    assert (args.train_iters, args.seq_length, args.bf16) == (30, 1024, True)


def test_precisions_that_stages_name_exist() -> None:
    for profile in PROFILES.values():
        for stage in profile.stages:
            if "--precision" in stage.command:
                assert stage.command[stage.command.index("--precision") + 1] in PRECISIONS
