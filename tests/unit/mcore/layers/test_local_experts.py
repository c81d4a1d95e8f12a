"""The experts of one process against Megatron's sequential ones, their slow, obvious twin."""

import copy
from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

from moe_megatron.config.adapter import A, B
from moe_megatron.config.parameter_roles import ParameterPlace
from moe_megatron.mcore.cpu.fast.swiglu_experts import SwiGluExperts, _windows
from moe_megatron.mcore.layers.local_experts import (
    LocalExperts,
)
from moe_megatron.mcore.tuning.adapters.adaptable import Matrix
from moe_megatron.mcore.tuning.adapters.adapter_tensors import AdapterTensors, Layout
from moe_megatron.mcore.tuning.adapters.update import LowRankUpdate

HIDDEN, INNER, EXPERTS = 16, 24, 4
COUNTS = [5, 0, 33, 2]

pytestmark = [
    pytest.mark.usefixtures("world"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="it serves machines without a GPU"),
]


def build(kind: type[SequentialMLP], **fields: Any) -> SequentialMLP:
    settings = TransformerConfig(
        **{
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "num_attention_heads": 2,
            "num_moe_experts": EXPERTS,
            "ffn_hidden_size": INNER,
            "moe_ffn_hidden_size": INNER,
            "gated_linear_unit": True,
            "activation_func": torch.nn.functional.silu,
            "add_bias_linear": False,
            "bias_activation_fusion": False,
            "gradient_accumulation_fusion": False,
            **fields,
        }
    )
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    modules = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return kind(EXPERTS, settings, modules, pg_collection=get_default_pg_collection())


def twins(**fields: Any) -> tuple[LocalExperts, SequentialMLP]:
    ours, theirs = build(LocalExperts, **fields), build(SequentialMLP, **fields)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert isinstance(ours, LocalExperts)
    return ours, theirs


def outcome(experts: SequentialMLP, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Output, and the gradients of tokens, combine weights and every parameter."""
    torch.manual_seed(5)
    x = torch.randn(sum(COUNTS), HIDDEN).to(dtype).requires_grad_()
    probs = torch.rand(sum(COUNTS)).requires_grad_()
    output, bias = experts(x, torch.tensor(COUNTS), probs)
    assert bias is None
    output.float().square().sum().backward()
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in experts.parameters()]
    assert x.grad is not None
    assert probs.grad is not None
    return [output.detach(), x.grad, probs.grad, *grads]


def test_output_and_gradients_equal_those_of_sequential_experts() -> None:
    ours, theirs = twins()
    torch.testing.assert_close(outcome(ours), outcome(theirs), rtol=1e-4, atol=1e-7)


def test_bf16_agrees_up_to_its_rounding() -> None:
    for ours, theirs in zip(
        outcome(twins(bf16=True, params_dtype=torch.bfloat16)[0], torch.bfloat16),
        outcome(twins(bf16=True, params_dtype=torch.bfloat16)[1], torch.bfloat16),
        strict=True,
    ):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).norm() <= 0.02 * theirs.float().norm()


def adapted(experts: SequentialMLP, dtype: torch.dtype) -> list[torch.Tensor]:
    """Give all matrices but one an adapter; its tensors."""
    generator, found = torch.Generator().manual_seed(8), []
    for number, expert in enumerate(experts.local_experts):
        for name, split in (("linear_fc1", "rows"), ("linear_fc2", "columns")):
            if (number, name) == (2, "linear_fc1"):
                continue
            layer, tensors = getattr(expert, name), AdapterTensors()
            place = f"decoder.layers.0.mlp.experts.local_experts.{number}.{name}.weight"
            matrix = Matrix(ParameterPlace(place, 1, number), layer, layer.weight, None, split)
            for part, shape in ((A, (3, matrix.inputs)), (B, (matrix.outputs, 3))):
                layout = Layout(
                    name=place.replace("weight", part),
                    shape=shape,
                    axis=None,
                    halves=False,
                    group=matrix.group,
                    of_expert=True,
                )
                tensors.add(layout, like=layer.weight, seed=1)
            for tensor in tensors.parameters():
                values = torch.randn(tensor.shape, generator=generator) / 4
                tensor.data = values.to(dtype)
                found.append(tensor)
            layer.weight.requires_grad_(False)
            layer.register_forward_hook(LowRankUpdate(matrix, [tensors], 0.5, 0.0))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_computed_as_by_hooks(dtype: torch.dtype, monkeypatch: Any) -> None:
    fields = {"bf16": True, "params_dtype": dtype} if dtype == torch.bfloat16 else {}
    results, entered, original = [], [], SwiGluExperts.apply
    monkeypatch.setattr(SwiGluExperts, "apply", lambda *it: entered.append(1) or original(*it))
    for experts in twins(**fields):
        tensors = adapted(experts, dtype)
        results.append([*outcome(experts, dtype), *(it.grad for it in tensors)])
    assert entered == [1]
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).float().norm() <= (
            (0.03 if dtype == torch.bfloat16 else 1e-5) * theirs.float().norm()
        )


def test_names_and_shapes_of_parameters_are_those_of_sequential_experts() -> None:
    ours, theirs = twins()
    shapes = [{n: p.shape for n, p in module.named_parameters()} for module in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_frozen_experts_get_no_gradient() -> None:
    experts = build(LocalExperts)
    frozen = experts.local_experts[2]
    frozen.requires_grad_(False)
    outcome(experts)
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None for p in experts.local_experts[0].parameters())


@pytest.mark.parametrize("case", ["gelu", "hook", "adapter"])
def test_experts_of_another_kind_are_left_to_megatron(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"activation_func": torch.nn.functional.gelu} if case == "gelu" else {}
    experts = build(LocalExperts, **fields)
    if case == "hook":
        experts.local_experts[1].register_forward_hook(lambda *_: None)
    if case == "adapter":

        class Adapted(ColumnParallelLinear):
            pass

        experts.local_experts[1].linear_fc1.__class__ = Adapted
    monkeypatch.setattr(SwiGluExperts, "apply", lambda *_: pytest.fail("the fast path was taken"))
    outcome(experts)


def test_experts_with_biases_have_the_gradients_of_their_formula() -> None:
    experts = build(LocalExperts, add_bias_linear=True)
    torch.manual_seed(6)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    output, _, _, *grads = (tensor.clone() for tensor in outcome(experts))
    experts.zero_grad()
    expected = []
    torch.manual_seed(5)
    x, probs = torch.randn(sum(COUNTS), HIDDEN), torch.rand(sum(COUNTS))
    rows = zip(experts.local_experts, x.split(COUNTS), probs.split(COUNTS), strict=True)
    for expert, tokens, weights in rows:
        fc1, fc2 = expert.linear_fc1, expert.linear_fc2
        gate, up = torch.nn.functional.linear(tokens, fc1.weight, fc1.bias).chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * up
        expected.append(weights[:, None] * torch.nn.functional.linear(inner, fc2.weight, fc2.bias))
    torch.testing.assert_close(output, torch.cat(expected).detach(), rtol=1e-4, atol=1e-6)
    torch.cat(expected).square().sum().backward()
    wanted = [p.grad if p.grad is not None else torch.zeros_like(p) for p in experts.parameters()]
    torch.testing.assert_close(grads, wanted, rtol=1e-4, atol=1e-5)


def test_windows_begin_with_an_experts_own_rows() -> None:
    windows = _windows([3, 0, 5], 4)
    assert [(w.rows, w.count) for w in windows] == [
        (slice(0, 4), 3),
        (slice(3, 3), 0),
        (slice(3, 11), 5),
    ]
    assert [w.rows for w in _windows([3, 0, 5], 1)] == [slice(0, 3), slice(3, 3), slice(3, 8)]


@pytest.mark.parametrize("counts", [COUNTS, [1, 1, 1, 1], [0, 0, 7, 0], [64, 32, 0, 31]])
def test_in_bf16_no_expert_is_touched_by_the_rows_of_another(counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(6)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().requires_grad_()

    fc1 = [numbers(2 * INNER, HIDDEN) for _ in counts]
    fc2 = [numbers(HIDDEN, INNER) for _ in counts]
    tokens, d_output = numbers(sum(counts), HIDDEN), numbers(sum(counts), HIDDEN).detach()
    probs = torch.rand(sum(counts), generator=generator).requires_grad_()
    inputs = [tokens, probs, *fc1, *fc2]

    def gradients(output: torch.Tensor) -> list[torch.Tensor]:
        return [x.contiguous() for x in torch.autograd.grad(output, inputs, d_output)]

    together = SwiGluExperts.apply(tokens, probs, counts, (), *fc1, *fc2)
    alone = torch.cat(
        [
            SwiGluExperts.apply(x, p, [len(x)], (), w1, w2)
            for x, p, w1, w2 in zip(
                tokens.split(counts), probs.split(counts), fc1, fc2, strict=True
            )
        ]
    )
    assert torch.equal(together, alone)
    for ours, wanted in zip(gradients(together), gradients(alone), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=2**-7, atol=1e-3)
