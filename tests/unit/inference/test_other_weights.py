"""A profile or a trace of another model of the same shape is refused by all that takes one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moe_megatron.analytics import RouterMonitor
from moe_megatron.caching import ExpertCache
from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.checkpoint.edit.fewer_experts import KeepMostUsed
from moe_megatron.checkpoint.edit.pool_change import Grow
from moe_megatron.checkpoint.resize import change_experts
from moe_megatron.checkpoint.routers import routers_of
from moe_megatron.errors import ConfigError
from moe_megatron.finetuning.moe_lora import MoELoRA
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.planning.memory_plan import hit_rates
from moe_megatron.inference.planning.sizes import sizes_of
from moe_megatron.inference.quantization.quantize import Recipe, quantize
from moe_megatron.inference.store.opening import open_store
from moe_megatron.inference.usage import counts_of, profile_of
from moe_megatron.models import MoEModel
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.testing.expert_models import FAMILIES, STACKED, save_model

QUIET = Execution(progress=False)
GATE = "model.layers.1.mlp.gate.weight"


@dataclass(frozen=True)
class Counted:
    profile: RoutingProfile
    trace: Trace


def with_other_routers(folder: Path) -> None:
    """Swap two experts in the router of the second layer."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights[GATE] = weights[GATE][[1, 0, *range(2, 8)]].contiguous()
    save_file(weights, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    return save_model("olmoe", tmp_path_factory.mktemp("olmoe") / "own", torch.bfloat16, **sizes)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    made = save_model("olmoe", tmp_path_factory.mktemp("olmoe") / "other", torch.bfloat16, **sizes)
    with_other_routers(made)
    return made


@pytest.fixture(scope="module")
def counted(folder: Path) -> Counted:
    """What the first model has needed for some words."""
    model = OptimizedMoEModel.from_pretrained(folder)
    with model.record() as recorder:
        model(torch.arange(48).view(1, 48))
    model.close()
    trace = recorder.trace()
    return Counted(profile_of(trace, (1, 2, 3)), trace)


def opened(folder: Path, it: Counted, place: Path) -> None:
    OptimizedMoEModel.from_pretrained(folder, profile=it.profile).close()


def some_experts(folder: Path, it: Counted, place: Path) -> None:
    OptimizedMoEModel.from_pretrained(folder, "by_layer", 4, profile=it.profile).close()


def by_trace(folder: Path, it: Counted, place: Path) -> None:
    model = OptimizedMoEModel.from_pretrained(folder)
    try:
        model.set_expert_cache(ExpertCache(1.0, "auto", trace=it.trace))
    finally:
        model.close()


def mixed(folder: Path, it: Counted, place: Path) -> None:
    quantize(folder, place / "small", Recipe(profile=it.profile), progress=False)


def planned(folder: Path, it: Counted, place: Path) -> None:
    it.trace.save(place / "trace.jsonl")
    store = open_store(folder)
    hit_rates(folder, store, sizes_of(folder, store), place / "trace.jsonl")


def imported(folder: Path, it: Counted, place: Path) -> None:
    wanted = KeepMostUsed(num_experts=4, profile=it.profile)
    import_checkpoint(folder, place / "megatron", experts=wanted, execution=QUIET)


def grown(folder: Path, it: Counted, place: Path) -> None:
    whole = place.with_name(f"{place.name}-whole")
    import_checkpoint(folder, whole, execution=QUIET)
    assert routers_of(whole) == routers_of(folder)
    change_experts(
        whole, place / "grown", Grow(num_experts=12, profile=it.profile), execution=QUIET
    )


def adapted(folder: Path, it: Counted, place: Path) -> None:
    model = MoEModel.from_pretrained(folder)
    MoELoRA(model, experts="top:25%", profile=it.profile, run_dir=place / "run")


@pytest.mark.parametrize(
    "use", [opened, some_experts, by_trace, mixed, planned, imported, grown, adapted]
)
def test_what_takes_a_profile_or_a_trace_refuses_that_of_other_weights(
    use: Callable[[Path, Counted, Path], None],
    counted: Counted,
    folder: Path,
    other: Path,
    tmp_path: Path,
) -> None:
    places = [tmp_path / it for it in ("own", "other", "meant")]
    for it in places:
        it.mkdir()
    use(folder, counted, places[0])
    with pytest.raises(ConfigError, match=r"was counted on other weights .* in layer 2, where"):
        use(other, counted, places[1])
    assert {it.name for it in places[1].iterdir()} <= {"trace.jsonl"}, "nothing is written"
    meant = Counted(counted.profile.of_any_model(), counted.trace.of_any_model())
    use(other, meant, places[2])


@pytest.mark.parametrize("family", [*FAMILIES, STACKED])
def test_every_family_says_which_tensors_its_routers_are(family: str, tmp_path: Path) -> None:
    whole = routers_of(save_model(family, tmp_path / "fp32"))
    assert [*whole] == ([2, 3] if family == "deepseek_v3" else [1, 2, 3])
    assert len({*whole.values()}) == len(whole)
    assert routers_of(save_model(family, tmp_path / "bf16", torch.bfloat16)) == whole
    assert routers_of(save_model(family, tmp_path / "fp16", torch.float16)) == {}
    if family != STACKED:
        trained = MoEModel.from_pretrained(tmp_path / "fp32")
        trained.save_pretrained(tmp_path / "again", format="hugging_face")
        assert routers_of(tmp_path / "again") == whole


def test_quantized_experts_leave_the_profile_as_it_is(
    folder: Path, counted: Counted, tmp_path: Path
) -> None:
    counted.profile.save(folder / PROFILE_FILE)
    try:
        small = quantize(folder, tmp_path / "small", Recipe(), progress=False).folder
    finally:
        (folder / PROFILE_FILE).unlink()
    assert routers_of(small) == routers_of(folder) == counted.profile.routers
    assert counts_of(small / PROFILE_FILE, open_store(small))


def test_router_of_few_bits_is_not_compared(folder: Path, counted: Counted, tmp_path: Path) -> None:
    model = save_model("olmoe", tmp_path, torch.bfloat16, hidden_size=64, intermediate_size=96)
    path = model / "model.safetensors"
    weights: dict[str, Any] = load_file(path)
    weights[GATE] = weights[GATE].to(torch.float8_e4m3fn)
    save_file(weights, path, metadata={"format": "pt"})
    known = routers_of(model)
    assert known == {layer: it for layer, it in counted.profile.routers.items() if layer != 2}
    assert counts_of(counted.profile, open_store(model))


def test_monitor_says_of_which_weights_its_counts_are(folder: Path) -> None:
    model = MoEModel.from_pretrained(folder)
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for it in (model, whole):
        monitor = RouterMonitor(it)
        with monitor.track():
            it(torch.arange(8).view(1, 8))
        assert monitor.profile().routers == routers_of(folder)


def test_trace_says_of_which_weights_it_is(counted: Counted, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    counted.trace.save(path)
    assert Trace.load(path) == counted.trace
    assert counted.trace.about.routers == counted.profile.routers != {}
    path.write_text('{"format":"moe-trace-1","layers":1,"experts":4,"top_k":2,"expert_bytes":64}\n')
    assert Trace.load(path).about.routers == {}
