"""Megatron's command line for a configuration, and its refusals in our words."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from megatron.training import training

from moe_megatron.config import RunConfig, apply_overrides, list_presets, load_config
from moe_megatron.config.flags import RULES, to_flags
from moe_megatron.errors import ConfigError
from moe_megatron.mcore.loop.arguments import (
    MachineSettings,
    RunPaths,
    check_flags_exist,
    megatron_argv,
    parse,
)

CPU = MachineSettings(
    backend="gloo",
    transformer_impl="local",
    precision="fp32",
    grouped_gemm=False,
    accumulation_fusion=False,
)
GPU = MachineSettings(
    backend="nccl",
    transformer_impl="transformer_engine",
    precision="bf16",
    grouped_gemm=True,
    accumulation_fusion=False,
)
PATHS = RunPaths(
    data=(),
    validation=(),
    data_cache="/cache",
    vocab_size=512,
    end_of_document=3,
    checkpoints=None,
    load=None,
)
TP2 = {"parallel.tensor_parallel_size": 2}
FUSIONS = (
    "--no-gradient-accumulation-fusion --no-bias-swiglu-fusion --no-bias-gelu-fusion "
    "--no-bias-dropout-fusion --no-masked-softmax-fusion --no-persist-layer-norm --no-rope-fusion"
).split()


def tiny(**changes: Any) -> RunConfig:
    return apply_overrides(load_config("test_tiny"), changes)


def machine(base: MachineSettings, **changes: Any) -> MachineSettings:
    fields = {name: getattr(base, name) for name in MachineSettings.__slots__}
    return MachineSettings(**{**fields, **changes})


def paths(**changes: Any) -> RunPaths:
    fields = {name: getattr(PATHS, name) for name in RunPaths.__slots__}
    return RunPaths(**{**fields, **changes})


def value_after(words: list[str], flag: str) -> str:
    """The value that counts: Megatron takes the last."""
    return words[len(words) - 1 - words[::-1].index(flag) + 1]


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("settings", [CPU, GPU], ids=["cpu", "gpu"])
def test_every_word_of_every_preset_is_a_flag_of_megatron(
    preset: str, settings: MachineSettings
) -> None:
    check_flags_exist(megatron_argv(load_config(preset), settings, PATHS))


@pytest.mark.parametrize("flag", [rule.flag for rule in RULES])
def test_flag_of_every_rule_exists_in_megatron(flag: str) -> None:
    check_flags_exist([f"--{flag}"])


def test_cpu_runs_plain_layers_over_gloo() -> None:
    words = megatron_argv(tiny(), CPU, PATHS)
    assert value_after(words, "--distributed-backend") == "gloo"
    assert value_after(words, "--transformer-impl") == "local"
    assert set(FUSIONS) <= set(words)
    assert {"--bf16", "--moe-grouped-gemm", "--fp8-format"}.isdisjoint(words)


def test_gpu_with_transformer_engine_keeps_every_fusion_it_has() -> None:
    words = megatron_argv(tiny(), GPU, PATHS)
    assert value_after(words, "--distributed-backend") == "nccl"
    assert value_after(words, "--transformer-impl") == "transformer_engine"
    assert {"--bf16", "--moe-grouped-gemm"} <= set(words)
    assert [word for word in words if word in FUSIONS] == ["--no-gradient-accumulation-fusion"]
    with_apex = megatron_argv(tiny(), machine(GPU, accumulation_fusion=True), PATHS)
    assert "--no-gradient-accumulation-fusion" not in with_apex


def test_local_layers_on_a_gpu_have_no_fusions() -> None:
    words = megatron_argv(tiny(), machine(GPU, transformer_impl="local"), PATHS)
    assert set(FUSIONS) <= set(words)


def test_grouped_experts_need_experts() -> None:
    dense = tiny(**{"moe.num_experts": None})
    assert "--moe-grouped-gemm" not in megatron_argv(dense, GPU, PATHS)


@pytest.mark.parametrize(
    ("precision", "flags"),
    [("fp32", []), ("bf16", ["--bf16"]), ("fp8", ["--bf16", "--fp8-format", "hybrid"])],
)
def test_precision_becomes_flags(precision: str, flags: list[str]) -> None:
    words = megatron_argv(tiny(), machine(GPU, precision=precision), PATHS)
    assert [w for w in words if w in {"--bf16", "--fp8-format", "hybrid"}] == flags


def test_format_of_the_user_wins() -> None:
    words = megatron_argv(
        tiny(**{"megatron.fp8-format": "e4m3"}), machine(GPU, precision="fp8"), PATHS
    )
    assert words.count("--fp8-format") == 1
    assert value_after(words, "--fp8-format") == "e4m3"


def test_flags_of_the_user_come_last() -> None:
    words = megatron_argv(tiny(**{"megatron.exit-interval": 5}), CPU, PATHS)
    fields = to_flags(tiny())
    assert words.index("--exit-interval") > words.index(fields[-1])


def test_paths_become_flags() -> None:
    config = tiny(**{"checkpoint.save_interval": 7, "checkpoint.load": "elsewhere"})
    words = megatron_argv(
        config, CPU, paths(data=("0.3", "a", "0.7", "b"), checkpoints="/run/ckpt", load="/old")
    )
    start = words.index("--data-path")
    assert words[start : start + 5] == ["--data-path", "0.3", "a", "0.7", "b"]
    assert "--mock-data" not in words
    for flag, value in {
        "--save": "/run/ckpt",
        "--save-interval": "7",
        "--load": "/old",
        "--data-cache-path": "/cache",
        "--vocab-size": "512",
        "--null-tokenizer-eod-id": "3",
    }.items():
        assert words.count(flag) == 1
        assert value_after(words, flag) == value


def test_validation_data_of_its_own_replaces_the_split() -> None:
    words = megatron_argv(tiny(), CPU, paths(data=("a",), validation=("1", "b")))
    start = words.index("--train-data-path")
    expected = ["--train-data-path", "a", "--valid-data-path", "1", "b"]
    assert words[start : start + 5] == expected
    assert "--data-path" not in words


def test_run_without_data_or_checkpoints_names_neither() -> None:
    words = megatron_argv(tiny(**{"checkpoint.save_interval": 7}), CPU, PATHS)
    assert "--mock-data" in words
    assert {"--save", "--save-interval", "--load", "--data-path"}.isdisjoint(words)


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        (TP2, {"--sequence-parallel"}, set()),
        ({**TP2, "parallel.sequence_parallel": False}, set(), {"--sequence-parallel"}),
        ({}, set(), {"--sequence-parallel", "--group-query-attention", "--recompute-method"}),
        ({"model.num_query_groups": 2}, {"--group-query-attention"}, set()),
        ({"training.recompute": "full"}, {"--recompute-method", "uniform"}, set()),
        ({"training.recompute": "selective"}, {"selective"}, {"--recompute-method"}),
        ({"checkpoint.async_save": True}, {"--async-strategy"}, set()),
    ],
)  # fmt: skip
def test_fields_that_imply_further_flags(
    changes: dict[str, Any], present: set[str], absent: set[str]
) -> None:
    words = set(megatron_argv(tiny(**changes), CPU, PATHS))
    assert present <= words
    assert absent.isdisjoint(words)


@pytest.mark.parametrize("base", [CPU, GPU], ids=["cpu", "gpu"])
def test_saves_in_the_background_ask_for_what_megatron_demands(base: MachineSettings) -> None:
    words = megatron_argv(tiny(**{"checkpoint.async_save": True}), base, PATHS)
    assert {"--async-save", "--use-persistent-ckpt-worker"} <= set(words)
    assert "--async-save" not in megatron_argv(tiny(), base, PATHS)


def test_run_that_never_evaluates_has_an_interval_that_megatron_can_divide_by() -> None:
    words = megatron_argv(tiny(**{"training.eval_interval": None}), CPU, PATHS)
    assert (value_after(words, "--eval-iters"), value_after(words, "--eval-interval")) == (
        "0",
        "10",
    )


def test_derived_sizes_are_those_of_the_configuration() -> None:
    config = tiny()
    words = megatron_argv(config, CPU, PATHS)
    assert value_after(words, "--max-position-embeddings") == str(config.max_position_embeddings)
    assert value_after(words, "--ffn-hidden-size") == str(config.model.dense_ffn_size)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num-layer", "Megatron has no flag --num-layer. Did you mean --num-layers?"),
        ("--router-topk=2", "Megatron has no flag --router-topk. Did you mean --moe-router-topk?"),
        ("--zzzzqqqq", "Megatron has no flag --zzzzqqqq."),
    ],
)  # fmt: skip
def test_unknown_flag_is_refused_with_the_nearest(flag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_flags_exist(["--num-layers", "2", flag])


def test_values_are_not_taken_for_flags() -> None:
    check_flags_exist(["--init-method-std", "-0.5", "--data-path", "-weird", "a b"])


@pytest.fixture
def fresh_globals() -> Iterator[None]:
    """Megatron keeps parsed arguments for the whole process."""
    before = sys.argv
    try:
        yield
    finally:
        training.destroy_global_state()
        assert sys.argv is before


@pytest.mark.usefixtures("fresh_globals")
def test_parsed_arguments_hold_what_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config = tiny(**{"moe.z_loss_coef": 0.25, "megatron.exit-interval": 5})
    args = parse(megatron_argv(config, CPU, PATHS))
    assert (args.num_layers, args.hidden_size, args.num_experts) == (2, 64, 4)
    assert (args.moe_router_topk, args.moe_z_loss_coeff) == (2, 0.25)
    assert (args.exit_interval, args.transformer_impl) == (5, "local")
    assert args.dist_ckpt_optim_fully_reshardable


@pytest.mark.usefixtures("fresh_globals")
@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("changes", [{}, {"checkpoint.async_save": True}])
def test_megatron_changes_nothing_that_a_run_asks_for(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    preset: str,
    changes: dict[str, Any],
) -> None:
    config = apply_overrides(load_config(preset), {"checkpoint.save_interval": 5, **changes})
    monkeypatch.setenv("WORLD_SIZE", str(config.parallel.world_size_step))
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    args = parse(megatron_argv(config, CPU, paths(checkpoints="/saves")))
    assert args.async_save is config.checkpoint.async_save
    assert [it.message for it in caplog.records if "what was asked" in it.message] == []


@pytest.mark.usefixtures("fresh_globals")
def test_flag_that_megatron_changes_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    meant = ["--exp-avg-dtype", "bf16", "--recompute-activations", "--moe-aux-loss-coeff", "0.5"]
    args = parse([*megatron_argv(tiny(), CPU, PATHS), "--async-save", *meant])
    assert not args.async_save
    told = [it.message for it in caplog.records if "what was asked" in it.message]
    assert told == ["Megatron does not do what was asked: --async-save: True became False"]


@pytest.mark.usefixtures("fresh_globals")
def test_refusal_of_megatron_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    argv = megatron_argv(tiny(**{"megatron.fp16": True}), machine(CPU, precision="bf16"), PATHS)
    with pytest.raises(
        ConfigError,
        match=r"(?s)^Megatron refuses these settings: .*\. Change the flag or field that it names; "
        r"--print-config shows the resolved configuration\.$",
    ) as caught:
        parse(argv)
    assert isinstance(caught.value.__cause__, AssertionError)


@pytest.mark.usefixtures("fresh_globals")
def test_value_that_megatron_cannot_read_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    argv = megatron_argv(tiny(**{"megatron.exit-interval": "soon"}), CPU, PATHS)
    with pytest.raises(
        ConfigError,
        match=r"^Megatron cannot read these flags: argument --exit-interval: invalid int value: "
        r"'soon'\.$",
    ):
        parse(argv)
    assert capsys.readouterr() == ("", "")


def test_files_of_wandb_are_in_the_run_folder_or_where_wandb_dir_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged = tiny(**{"run_dir": "runs/a", "megatron.wandb-project": "moe"})
    monkeypatch.delenv("WANDB_DIR", raising=False)
    assert value_after(megatron_argv(logged, CPU, PATHS), "--wandb-save-dir") == "runs/a"
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    assert value_after(megatron_argv(logged, CPU, PATHS), "--wandb-save-dir") == "/elsewhere"
    chosen = tiny(**{"megatron.wandb-project": "moe", "megatron.wandb-save-dir": "mine"})
    assert megatron_argv(chosen, CPU, PATHS).count("--wandb-save-dir") == 1
    assert "--wandb-save-dir" not in megatron_argv(tiny(), CPU, PATHS)
