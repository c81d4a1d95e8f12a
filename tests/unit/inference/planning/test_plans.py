"""What fits into a memory is arithmetic on sizes and speeds; sizes are those of the model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_megatron.errors import ConfigError
from moe_megatron.inference.planning.memory_plan import hit_rates, plan_memory
from moe_megatron.inference.planning.plans import Experts, Plan, plans
from moe_megatron.inference.planning.sizes import Sizes, sizes_of
from moe_megatron.inference.planning.speeds import Speeds, packed_bytes
from moe_megatron.inference.quantization.precision import Precision
from moe_megatron.inference.store.opening import open_store
from moe_megatron.testing.expert_models import FAMILIES, STACKED, save_model

SIZES = Sizes(
    others=1000,
    looked_up=400,
    expert=100,
    file=90,
    cached_token=2,
    hidden=8,
    expert_width=4,
    first_rows=8,
    layers=3,
    moe_layers=2,
    experts=8,
    top_k=2,
)
SPEEDS = Speeds(memory=600.0, expert={None: 0.25}, disk=30.0, pages=90.0, layer=1.0, step=0.5)
AS_IT_IS = Experts(name="bf16", precision=None, nbytes=100, file=90)


def _plan(memory: int, hits: float = 0.5) -> Plan:
    (plan,) = plans(memory, 200, 50, SIZES, SPEEDS, [AS_IT_IS], lambda slots: hits)
    return plan


def test_a_memory_holds_the_program_the_context_and_then_experts() -> None:
    base = 200 + 1000 + 50 * 2
    small = _plan(base + 4 * 100 - 1)
    assert not small.fits
    assert small.nbytes == base + 4 * 100
    least = _plan(base + 4 * 100)
    assert (least.slots, least.share, least.nbytes) == (4, 0.25, base + 400)
    whole = _plan(base + 100 * 100)
    assert (whole.slots, whole.share, whole.hit_rate) == (16, 1.0, 1.0)


def test_a_step_is_the_sum_of_its_parts() -> None:
    always = 0.5 + 3 * 1.0 + 600 / 600 + 4 * 0.25
    some = _plan(2000, hits=0.75)
    assert some.tokens_per_second == pytest.approx(1 / (always + 1 * 90 / 30))
    assert some.tokens_per_second_pages == pytest.approx(1 / (always + 1 * 90 / 90))
    whole = _plan(10_000)
    assert whole.tokens_per_second == whole.tokens_per_second_pages == pytest.approx(1 / always)


@pytest.mark.parametrize("family", [*FAMILIES, STACKED])
def test_sizes_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_model(family, tmp_path / "model", torch.bfloat16)
    store = open_store(folder)
    sizes = sizes_of(folder, store)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    parameters = {name: it.nbytes for name, it in model.named_parameters()}
    experts = sum(it for name, it in parameters.items() if ".experts." in name)
    assert sizes.every * sizes.expert == sizes.every * sizes.file == experts
    buffers = 2 * 8 * sizes.moe_layers if family == "deepseek_v3" else 0  # biases of experts
    assert sizes.others == sum(parameters.values()) - experts + buffers
    assert sizes.looked_up == model.get_input_embeddings().weight.nbytes
    kept = model(torch.zeros(1, 5, dtype=torch.long), use_cache=True).past_key_values
    tensors = [it for layer in kept.layers for it in (layer.keys, layer.values)]
    assert 5 * sizes.cached_token == sum(it.nbytes for it in tensors)
    memory = torch.zeros(store.nbytes, dtype=torch.uint8)
    first, second = (it.dequantized() for it in store.matrices((store.layers[0], 0), memory))
    assert first.shape == (sizes.first_rows, sizes.hidden)
    assert second.shape == (sizes.hidden, sizes.expert_width)
    store.close()


def test_packed_bytes_are_those_in_memory(tmp_path: Path) -> None:
    from moe_megatron.optimization import MoEOptimizer

    sizes = {"hidden_size": 64, "intermediate_size": 96}
    folder = save_model("mixtral", tmp_path / "model", torch.bfloat16, **sizes)
    shapes = open_store(folder).shapes  # type: ignore[attr-defined]
    for bits, precision in ((8, Precision(8)), (4, Precision(4, 32))):
        packed = tmp_path / str(bits)
        MoEOptimizer().quantize(folder, packed, bits=bits, group_size=32)
        needed = sum(packed_bytes(shape, precision, 2) for shape in shapes)
        assert 0 <= open_store(packed).nbytes - needed < 4 * 64, "parts begin at multiples of 64"


def test_hit_rates_come_from_the_best_that_is_known(tmp_path: Path) -> None:
    from moe_megatron.inference.optimized_model import OptimizedMoEModel
    from moe_megatron.inference.usage import profile_of

    folder = save_model("mixtral", tmp_path / "model", torch.bfloat16)
    chance = plan_memory(folder, 100.0)
    assert chance.hits_from == "chance"
    assert {it.experts: it.share for it in chance.plans} == {"bf16": 1.0, "int8": 1.0}
    assert all(it.tokens_per_second > 0 for it in chance.plans)

    model = OptimizedMoEModel.from_pretrained(folder)
    with model.record() as recorder:
        for word in range(40):
            model(torch.tensor([[word % 7]]))
    trace = recorder.trace()
    trace.save(tmp_path / "trace.jsonl")
    profile_of(trace, (1, 2, 3)).save(folder / "routing_profile.json")
    store = open_store(folder)
    uses = sorted(trace.counts().values(), reverse=True)
    whence, of_profile = hit_rates(folder, store, chance.sizes, None)
    assert whence == "profile"
    assert of_profile(12) == pytest.approx(sum(uses[:12]) / sum(uses))
    whence, of_trace = hit_rates(folder, store, chance.sizes, tmp_path / "trace.jsonl")
    assert whence == "trace"
    assert of_profile(6) < of_trace(18) <= 1
    other = save_model("mixtral", tmp_path / "other", num_local_experts=4)
    with pytest.raises(ConfigError, match="trace of this model"):
        plan_memory(other, 100.0, trace=tmp_path / "trace.jsonl")


def test_a_wider_model_takes_more() -> None:
    wide = replace(SIZES, others=2000)
    (plan,) = plans(3000, 200, 50, wide, SPEEDS, [AS_IT_IS], lambda slots: 0.5)
    assert plan.slots == 7
