"""Partial conversions, types, warnings, and what happens to destinations."""

import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, equal

from moe_megatron import MoEModel
from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.edit.selection import Selection
from moe_megatron.checkpoint.formats.torch_dist import resolve
from moe_megatron.config import RouterConfig, apply_overrides, dump_yaml, load_config
from moe_megatron.config.masked_experts import write_masked
from moe_megatron.errors import CheckpointError, MappingError
from moe_megatron.families.choice import FLAGS_OF_UNKNOWN_FUNCTION
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.tiny_models import add_prediction, save

FILE = "model.safetensors"
QUIET = Execution(progress=False)
Tensors = Callable[[Path], dict[str, Tensor]]


@pytest.fixture
def source(mixtral: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(mixtral, tmp_path / "source"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def there_and_back(source: Path, folder: Path, **options: Any) -> Path:
    import_checkpoint(source, folder / "megatron", execution=QUIET, **options)
    export_checkpoint(folder / "megatron", folder / "back", execution=QUIET)
    return folder / "back"


def test_chosen_experts_keep_their_weights_and_router_rows(
    mixtral: Path, tmp_path: Path, tensors: Tensors
) -> None:
    chosen = (3, 0, 1)
    back = there_and_back(mixtral, tmp_path, selection=Selection(experts=chosen))
    before, after = tensors(mixtral), tensors(back)
    assert json.loads((back / "config.json").read_text())["num_local_experts"] == 3
    moe = "model.layers.1.block_sparse_moe"
    assert equal(after[f"{moe}.gate.weight"], before[f"{moe}.gate.weight"][list(chosen)])
    for new, old in enumerate(chosen):
        name = f"{moe}.experts.{{}}.w2.weight"
        assert equal(after[name.format(new)], before[name.format(old)])
    assert not any(".experts.3." in name for name in after)


def test_chosen_layers_are_numbered_anew(mixtral: Path, tmp_path: Path, tensors: Tensors) -> None:
    back = there_and_back(mixtral, tmp_path, selection=Selection(layers=(0, 2)))
    before, after = tensors(mixtral), tensors(back)
    assert json.loads((back / "config.json").read_text())["num_hidden_layers"] == 2
    query = "model.layers.{}.self_attn.q_proj.weight"
    assert equal(after[query.format(1)], before[query.format(2)])
    assert query.format(2) not in after


@pytest.mark.parametrize("name", ["qwen2_moe-dense-layers", "deepseek_v3", "gpt_oss"])
def test_layers_of_mixed_models_can_be_chosen(name: str, tmp_path: Path, tensors: Tensors) -> None:
    save(name, tmp_path / "source", fused=False)
    back = there_and_back(tmp_path / "source", tmp_path, selection=Selection(layers=(1, 2)))
    before, after = tensors(tmp_path / "source"), tensors(back)
    renumbered = {
        n.replace("layers.1.", "layers.X.").replace("layers.2.", "layers.1.").replace("X", "0"): v
        for n, v in before.items()
        if not n.startswith("model.layers.") or n.startswith(("model.layers.1.", "model.layers.2."))
    }
    assert renumbered.keys() == after.keys()
    assert all(equal(value, after[n]) for n, value in renumbered.items())


def test_selected_layers_keep_their_windows_where_none_are_listed(tmp_path: Path) -> None:
    save("gpt_oss", tmp_path / "source", fused=False)
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    del config["layer_types"]  # then every second layer has a window
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    back = there_and_back(tmp_path / "source", tmp_path, selection=Selection(layers=(1, 2)))
    found = json.loads((back / "config.json").read_text())
    assert found["layer_types"] == ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            Selection(experts=(0, 4)),
            r"experts \[0, 4\] .* the model has 4; give numbers from 0 to 3",
        ),
        (Selection(layers=()), r"layers \[\] were requested, but the model has 3"),
    ],
)
def test_selection_outside_of_the_model_is_an_error(
    selection: Selection, message: str, mixtral: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(mixtral, tmp_path / "out", selection=selection, execution=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("on_import", [True, False])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_cast_is_that_of_torch(
    dtype: str, on_import: bool, mixtral: Path, tmp_path: Path, tensors: Tensors
) -> None:
    options: list[dict[str, Any]] = [{"dtype": dtype}, {}]
    first, second = options if on_import else reversed(options)
    import_checkpoint(mixtral, tmp_path / "megatron", execution=QUIET, **first)
    export_checkpoint(tmp_path / "megatron", tmp_path / "back", execution=QUIET, **second)
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    after = tensors(tmp_path / "back")
    assert all(equal(v.to(wanted), after[n]) for n, v in tensors(mixtral).items())
    name = json.loads((tmp_path / "back" / "config.json").read_text())["dtype"]
    assert f"torch.{name}" == str(wanted)


def test_weights_of_eight_bits_are_multiplied_by_their_factors(
    tmp_path: Path, tensors: Tensors
) -> None:
    save("deepseek_v3", tmp_path / "source", fused=False)
    expected: dict[str, Tensor] = {}

    def quantize(weights: dict[str, Tensor]) -> None:
        torch.manual_seed(0)
        for name in [n for n in weights if ".experts." in n]:
            eight = weights[name].to(torch.float8_e4m3fn)
            rows, columns = (-(-size // 16) for size in eight.shape)
            factors = torch.rand(rows, columns) + 0.5
            weights[name], weights[f"{name}_scale_inv"] = eight, factors
            whole = factors.repeat_interleave(16, 0).repeat_interleave(16, 1)
            whole = whole[: eight.shape[0], : eight.shape[1]]
            expected[name] = (eight.float() * whole).bfloat16()
        for name, value in weights.items():
            if ".experts." not in name and "bias" not in name:
                weights[name] = value.bfloat16()
                expected[name] = weights[name]

    rewrite(tmp_path / "source", quantize)
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    reconfigure(tmp_path / "source", quantization_config=quantization)
    back = there_and_back(tmp_path / "source", tmp_path)
    after = tensors(back)
    assert expected
    assert all(equal(value, after[name]) for name, value in expected.items())
    assert not any(name.endswith("_scale_inv") for name in after)
    assert "quantization_config" not in json.loads((back / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "copies", "told"),
    [("deepseek_v3", True, False), ("deepseek_v3", False, True), ("glm4_moe", None, False)],
)
def test_copies_that_an_export_does_not_write_are_told(
    name: str, copies: bool | None, told: bool, tmp_path: Path
) -> None:
    save(name, tmp_path / "source", fused=False)
    if copies is not None:
        add_prediction(tmp_path / "source", copies=copies)
    import_checkpoint(tmp_path / "source", tmp_path / "out", execution=QUIET)
    report = export_checkpoint(tmp_path / "out", tmp_path / "back", execution=QUIET)
    assert any("this folder does not, as the checkpoint" in it for it in report.remarks) == told
    assert any("shared_head.head" in it for it in load_file(tmp_path / "back" / FILE)) == bool(
        copies
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(bad: float, source: Path, tmp_path: Path) -> None:
    broken = ["model.layers.1.block_sparse_moe.experts.2.w1.weight", "model.norm.weight"]

    def spoil(weights: dict[str, Tensor]) -> None:
        for name in broken:
            weights[name].view(-1)[-1] = bad

    rewrite(source, spoil)
    report = import_checkpoint(source, tmp_path / "megatron", execution=QUIET)
    assert sorted(report.nonfinite) == sorted(broken)
    report = export_checkpoint(
        tmp_path / "megatron", tmp_path / "back", dtype="bf16", execution=QUIET
    )
    assert sorted(report.nonfinite) == sorted(broken)


def test_mixed_types_need_one_type(source: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    rewrite(source, lambda weights: weights.update({name: weights[name].bfloat16()}))
    with pytest.raises(CheckpointError, match=r"choose one type with dtype=bf16") as caught:
        import_checkpoint(source, tmp_path / "megatron", execution=QUIET)
    assert f"{name} is BF16 and model.layers.1.self_attn." in str(caught.value)
    assert "v_proj.weight is F32, but Megatron" in str(caught.value)
    import_checkpoint(source, tmp_path / "megatron", dtype="bf16", execution=QUIET)


def test_integers_are_no_weights(source: Path, tmp_path: Path) -> None:
    name = "model.norm.weight"
    rewrite(source, lambda weights: weights.update({name: weights[name].int()}))
    with pytest.raises(CheckpointError, match=rf"{name} has the type I32"):
        import_checkpoint(source, tmp_path / "megatron", execution=QUIET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"lacks model\.norm\.weight"),
        (
            lambda w: w.update(extra=torch.zeros(2)),
            r"holds extra, for which this family has no counterpart",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(47)}),
            r"model\.norm\.weight has the shape \[47\], but config\.json requires \[48\]",
        ),
    ],
)
def test_tensors_of_another_model_are_named(
    change: Callable[[dict[str, Tensor]], object], message: str, source: Path, tmp_path: Path
) -> None:
    rewrite(source, change)
    with pytest.raises(MappingError, match=message):
        import_checkpoint(source, tmp_path / "megatron", execution=QUIET)
    assert not (tmp_path / "megatron").exists()


def test_unknown_family_is_named(source: Path, tmp_path: Path) -> None:
    reconfigure(source, model_type="mixtrall")
    with pytest.raises(MappingError, match=r"'mixtrall'.*mixtral"):
        import_checkpoint(source, tmp_path / "megatron", execution=QUIET)


def test_index_that_leads_outside_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"'\.\./outside\.safetensors', which is not a file of"
    ):
        import_checkpoint(source, tmp_path / "megatron", execution=QUIET)


def test_destination_is_replaced_only_when_asked(
    mixtral: Path, imported: Path, tmp_path: Path, tensors: Tensors
) -> None:
    out = tmp_path / "out"
    export_checkpoint(imported, out, execution=QUIET)
    (out / "note.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"exists and is not empty; .*--overwrite"):
        export_checkpoint(imported, out, execution=QUIET)
    assert (out / "note.txt").read_text() == "mine"
    overwriting = Execution(progress=False, overwrite=True)
    export_checkpoint(imported, out, dtype="bf16", execution=overwriting)
    assert not (out / "note.txt").exists()
    assert all(value.dtype == torch.bfloat16 for value in tensors(out).values())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_checkpoints_of_a_run_are_not_mixed_with_an_import(mixtral: Path, tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40")
    with pytest.raises(CheckpointError, match=r"holds the checkpoints of a run"):
        import_checkpoint(mixtral, tmp_path, execution=QUIET)


def test_dry_run_writes_nothing(mixtral: Path, tmp_path: Path) -> None:
    dry = Execution(progress=False, dry_run=True)
    report = import_checkpoint(mixtral, tmp_path / "out", execution=dry)
    assert "taking turns: model.layers.*.self_attn.q_proj.weight" in report.plan.describe()
    assert report.outcome is None
    assert list(tmp_path.iterdir()) == []


def test_large_models_get_several_files_and_an_index(
    mixtral: Path, imported: Path, tmp_path: Path, tensors: Tensors
) -> None:
    export_checkpoint(imported, tmp_path / "out", max_shard_bytes=100_000, execution=QUIET)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in tensors(mixtral).values())
    assert tensors(tmp_path / "out").keys() == tensors(mixtral).keys()


def test_profile_and_side_files_travel_but_code_does_not(source: Path, tmp_path: Path) -> None:
    profile = RoutingProfile.empty(layers=(1, 2, 3), num_experts=4, top_k=2)
    profile.save(source / "routing_profile.json")
    for name in ("chat_template.jinja", "tokenizer_config.json", "modeling_mixtral.py"):
        (source / name).write_text(name)
    back = there_and_back(source, tmp_path)
    assert (back / "routing_profile.json").read_bytes() == (
        source / "routing_profile.json"
    ).read_bytes()
    assert (back / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert (back / "generation_config.json").is_file()
    assert not (back / "modeling_mixtral.py").exists()


def test_run_reads_text_with_the_tokenizer_of_the_model(source: Path, tmp_path: Path) -> None:
    import_checkpoint(source, tmp_path / "without", execution=QUIET)
    (source / "tokenizer.json").write_text("{}")
    import_checkpoint(source, tmp_path / "with", execution=QUIET)
    run = load_config(tmp_path / "with" / "release" / "config.yaml")
    assert run.data.tokenizer == str(tmp_path / "with" / "release" / "hf")
    assert (Path(run.data.tokenizer) / "tokenizer.json").is_file()
    assert load_config(tmp_path / "without" / "release" / "config.yaml").data.tokenizer == "demo"


def test_garbage_collection_is_as_it_was_after_a_conversion_that_failed(tmp_path):
    assert gc.isenabled()
    with pytest.raises(CheckpointError):
        import_checkpoint(tmp_path / "nothing", tmp_path / "new")
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(CheckpointError):
            import_checkpoint(tmp_path / "nothing", tmp_path / "new")
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.fixture
def checkpoint(imported: Path, tmp_path: Path) -> Path:
    """The tensors of a copy of a checkpoint that a test may change."""
    return resolve(Path(shutil.copytree(imported, tmp_path / "checkpoint")))


def test_masked_experts_are_no_model_of_others(checkpoint: Path, tmp_path: Path) -> None:
    write_masked(checkpoint, frozenset({(2, 1)}))
    message = r"has masked experts \(expert 1 of layer 2\): .* recovery\.restore_experts=restore"
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(checkpoint, tmp_path / "out", execution=QUIET)
    with pytest.raises(CheckpointError, match=message):
        MoEModel.from_pretrained(checkpoint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("model.activation", "quick_geglu", "activation would be swiglu, not quick_geglu"),
        ("model.activation_clamp", 5.0, "activation_clamp would be none, not 5"),
        ("model.glu_offset", 1.0, "glu_offset would be 0"),
        ("model.logits_divisor", 2.0, "logits_divisor would be 1"),
        ("model.residual_multiplier", 2.0, "residual_multiplier would be 1"),
        ("model.embedding_multiplier", 2.0, "embedding_multiplier would be 1"),
        ("model.attention_multiplier", 0.5, "attention_multiplier would be 0.35"),
        ("model.sliding_window.size", 8, "sliding_window would be none"),
        ("moe.router.pre_softmax", True, "moe.router.pre_softmax would be False, not True"),
        ("moe.router.scaling", 2.0, "moe.router.scaling would be none, not 2"),
        ("moe.router.name", "sparse_mixer", "moe.router.name would be top_k, not sparse_mixer"),
    ],
)
def test_setting_that_the_family_cannot_express_is_not_exported(
    field: str, value: Any, named: str, checkpoint: Path, tmp_path: Path
) -> None:
    file = checkpoint / "config.yaml"
    run = load_config(file)
    if field == "moe.router.name":
        changed = replace(run, moe=replace(run.moe, router=RouterConfig(name=value, options={})))
    else:
        changed = apply_overrides(run, {field: value})
    file.write_text(dump_yaml(changed))
    with pytest.raises(MappingError, match=f"mixtral model cannot be what this run .*{named}"):
        export_checkpoint(checkpoint, tmp_path / "out", execution=QUIET)
    assert not (tmp_path / "out").exists()


def test_configuration_with_unknown_fields_is_remarked_on(source: Path, tmp_path: Path) -> None:
    reconfigure(source, use_alibi=True)
    report = import_checkpoint(source, tmp_path / "out", execution=QUIET)
    assert "has use_alibi, which neither this conversion nor" in report.remarks[0]
    reconfigure(source, auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    with pytest.raises(MappingError, match=r"brings code of its own \(auto_map\)"):
        import_checkpoint(source, tmp_path / "again", execution=QUIET)


def test_flags_that_change_the_function_are_megatrons() -> None:
    from moe_megatron.mcore.loop.arguments import check_flags_exist

    check_flags_exist([f"--{flag}" for flag in FLAGS_OF_UNKNOWN_FUNCTION])


@pytest.mark.parametrize("flag", FLAGS_OF_UNKNOWN_FUNCTION)
def test_flag_that_changes_the_function_is_refused_by_name(flag: str, checkpoint: Path) -> None:
    file = checkpoint / "config.yaml"
    text = file.read_text()
    assert "megatron: {}\n" in text
    file.write_text(text.replace("megatron: {}\n", f"megatron:\n  {flag}: x\n"))
    with pytest.raises(CheckpointError, match=f"was trained with --{flag}, which changes what"):
        MoEModel.from_pretrained(checkpoint)
