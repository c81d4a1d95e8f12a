"""What is random in training is off in evaluation, inside Megatron's layers, too."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.training.global_vars import destroy_global_vars

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import ConfigError
from moe_megatron.mcore.layers.drawing import seed_of
from moe_megatron.mcore.layers.expert_dropout import add_expert_dropout
from moe_megatron.mcore.layers.token_ids import show_token_ids
from moe_megatron.mcore.state.layered import bare_model
from moe_megatron.routing import resolve, router_names

pytestmark = [
    pytest.mark.usefixtures("world"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="bare models are built on the CPU"),
]

RANDOM: dict[str, dict[str, Any]] = {
    "attention dropout": {"model.attention_dropout": 0.3},
    "hidden dropout": {"model.hidden_dropout": 0.3},
    "expert dropout": {"moe.expert_dropout": 0.3},
    "input jitter": {"moe.input_jitter": 0.3},
    "sampling router": {"moe.router.name": "sparse_mixer", "moe.router.jitter": 0.5},
}
TOKENS = torch.arange(32).reshape(2, 16)


def forget() -> None:
    """Megatron's memory of the model before."""
    destroy_global_vars()
    unset_num_microbatches_calculator()


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    forget()


def build(overrides: dict[str, Any]) -> Any:
    config = apply_overrides(load_config("test_tiny"), {"data.vocab_size": 64, **overrides})
    config = apply_overrides(config, {"parallel.expert_parallel_size": 1})
    object.__setattr__(config, "moe", resolve(config.moe))
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    forget()
    model = bare_model(config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def logits(model: Any) -> torch.Tensor:
    positions = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    show_token_ids(TOKENS)
    with torch.no_grad():
        return model(TOKENS, positions, None)  # type: ignore[no-any-return]


def generators() -> list[bytes]:
    """The state of every random generator that a layer may draw from."""
    states = [torch.get_rng_state(), *get_cuda_rng_tracker().get_states().values()]
    return [bytes(state.tolist()) for state in states]


@pytest.mark.parametrize("kind", RANDOM)
def test_what_is_random_in_training_is_not_in_evaluation(kind: str) -> None:
    model = build(RANDOM[kind]).train()
    torch.manual_seed(seed_of(1, "default"))
    first = logits(model)
    torch.manual_seed(seed_of(2, "default"))
    assert not torch.equal(first, logits(model))
    before = generators()
    assert torch.equal(logits(model.eval()), logits(model))
    assert generators() == before


@pytest.mark.parametrize("router", router_names())
def test_no_router_draws_a_number_in_evaluation(router: str) -> None:
    everything = {name: it for fields in RANDOM.values() for name, it in fields.items()}
    everything = {name: it for name, it in everything.items() if not name.startswith("moe.router.")}
    model = build({**everything, "moe.router.name": router}).eval()
    before = generators()
    logits(model)
    assert generators() == before


def test_expert_dropout_changes_nothing_but_the_experts() -> None:
    plain, dropped = build({}), build({"moe.expert_dropout": 0.3})
    torch.testing.assert_close(logits(dropped.eval()), logits(plain.eval()))
    names = [name for name, module in dropped.named_modules() if module._forward_pre_hooks]
    assert names
    assert all(".mlp.experts." in name and name.endswith("linear_fc2") for name in names)


def test_expert_dropout_in_a_fused_operation_is_refused() -> None:
    model = build({})
    for layer in model.decoder.layers:
        layer.mlp.experts._with_fused_impl = True
    with pytest.raises(
        ConfigError, match=r"moe.expert_dropout \(0.3\) does not work with --use-tr"
    ):
        add_expert_dropout([model], 0.3)


def test_expert_dropout_drops_its_share_and_scales_the_rest() -> None:
    """The twin: what reaches an output projection is what did without dropout, or nothing."""
    model = build({"moe.expert_dropout": 0.25}).train()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    before: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("linear_fc2") and ".mlp.experts." in name:
            # A hook that was added first sees what dropout is given, one added now what it gives.
            (dropout,) = module._forward_pre_hooks.values()
            module._forward_pre_hooks.clear()
            module.register_forward_pre_hook(lambda _, given: before.append(given[0].clone()))
            module.register_forward_pre_hook(dropout)
            module.register_forward_pre_hook(lambda _, given: seen.append((before.pop(), given[0])))
    logits(model)
    given, left = (torch.cat([pair[i].flatten() for pair in seen]) for i in (0, 1))
    assert len(given) > 1000
    kept = left != 0
    torch.testing.assert_close(left[kept], given[kept] / 0.75)
    assert 1 - float(kept.float().mean()) == pytest.approx(0.25, abs=0.05)
