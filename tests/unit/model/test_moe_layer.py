import pytest
import torch
from torch.nn import functional

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.model.moe_layer import MoELayer
from moe_megatron.routing import drop_over_capacity, expert_capacity
from moe_megatron.routing.top_k import route_top_k

HIDDEN, EXPERTS = 16, 4
WIDTHS = {"hidden_size": HIDDEN, "num_attention_heads": 2}


@pytest.fixture
def layer():
    def make(activation="swiglu", add_bias=False, **moe):
        torch.manual_seed(0)
        model = ModelConfig(**WIDTHS, activation=activation, add_bias=add_bias)
        config = MoEConfig(num_experts=EXPERTS, expert_hidden_size=12, **moe)
        built = MoELayer(model, config, EXPERTS, layer=3)
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return built

    return make


def run_expert(expert, token, activation):
    up = expert.up_proj(token)
    if activation == "swiglu":
        return expert.down_proj(functional.silu(expert.gate_proj(token)) * up)
    return expert.down_proj(functional.gelu(up) if activation == "gelu" else up.relu() ** 2)


def one_token_at_a_time(layer, hidden, activation):
    """The slow, obvious twin: a loop over tokens and over each token's experts."""
    config = layer.config
    router = layer.router
    logits = functional.linear(hidden, router.weight, router.bias)
    routing = route_top_k(logits, top_k=config.top_k, **config.router.options)
    if config.capacity_factor is not None:
        capacity = expert_capacity(len(hidden), config.top_k, EXPERTS, config.capacity_factor)
        routing = drop_over_capacity(routing, capacity)
    outputs = []
    for token, row in enumerate(hidden):
        output = torch.zeros(HIDDEN)
        for slot in range(config.top_k):
            if routing.kept[token, slot]:
                expert = layer.experts[str(int(routing.indices[token, slot]))]
                output = output + routing.weights[token, slot] * run_expert(expert, row, activation)
        if layer.shared_expert is not None:
            output = output + run_expert(layer.shared_expert, row, activation)
        outputs.append(output)
    return torch.stack(outputs)


@pytest.mark.parametrize(
    ("activation", "add_bias", "moe"),
    [
        ("swiglu", False, {}),
        ("gelu", False, {}),
        ("squared_relu", False, {}),
        ("gelu", True, {}),
        ("swiglu", False, {"top_k": 1, "router": {"pre_softmax": True}}),
        ("swiglu", False, {"router": {"score_function": "sigmoid"}}),
        ("swiglu", False, {"shared_expert_hidden_size": 20}),
        ("swiglu", False, {"capacity_factor": 0.5}),
    ],
)
def test_layer_and_its_gradients_equal_a_loop_over_tokens(layer, activation, add_bias, moe):
    module = layer(activation, add_bias, **moe)
    hidden = torch.randn(2, 9, HIDDEN, requires_grad=True)
    fast, _ = module(hidden, None)
    slow = one_token_at_a_time(module, hidden.flatten(0, 1), activation).view_as(fast)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    wanted = [hidden, *module.parameters()]
    target = torch.randn_like(fast)
    for ours, theirs in zip(
        torch.autograd.grad((fast * target).sum(), wanted, retain_graph=True),
        torch.autograd.grad((slow * target).sum(), wanted, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_padding_is_not_routed_and_gets_nothing(layer):
    module = layer(capacity_factor=0.5)
    hidden = torch.randn(2, 5, HIDDEN)
    valid = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    output, info = module(hidden, valid)
    alone, info_alone = module(hidden[valid][None], None)
    assert torch.equal(output[valid], alone[0])
    assert not output[~valid].any()
    assert torch.equal(info.indices[valid], info_alone.indices[0])
    assert (info.indices[~valid] == -1).all()
    assert torch.equal(info.tokens_per_expert, info_alone.tokens_per_expert)
    assert torch.equal(info.aux_loss, info_alone.aux_loss)


def test_info_counts_every_assignment_once(layer):
    _, info = layer(capacity_factor=0.5)(torch.randn(2, 9, HIDDEN), None)
    assert int(info.dropped) > 0
    assert int(info.tokens_per_expert.sum() + info.dropped) == 2 * 9 * 2
    assert info.layer == 3
    assert info.indices.shape == info.weights.shape == (2, 9, 2)
    assert info.scores.sum(-1).allclose(torch.ones(2, 9))
    assert info.aux_loss.requires_grad
    assert not any(t.requires_grad for t in (info.weights, info.scores, info.entropy))


def test_sequence_balancing_is_the_mean_over_sequences(layer):
    hidden = torch.randn(3, 7, HIDDEN)
    whole = layer(load_balancing="seq_aux_loss")
    each = [whole(row[None], None)[1].aux_loss for row in hidden]
    torch.testing.assert_close(whole(hidden, None)[1].aux_loss, torch.stack(each).mean())


def test_expert_without_tokens_gets_a_gradient_of_zeros(layer):
    module = layer(top_k=1, router={"pre_softmax": True})
    module(torch.randn(1, 1, HIDDEN), None)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_jitter_is_for_training_only(layer):
    module = layer(input_jitter=0.5)
    hidden = torch.randn(1, 6, HIDDEN)
    module.eval()
    assert torch.equal(module(hidden, None)[1].z_loss, module(hidden, None)[1].z_loss)
    module.train()
    assert not torch.equal(module(hidden, None)[1].z_loss, module(hidden, None)[1].z_loss)


def test_expert_dropout_is_for_training_only(layer):
    module = layer(expert_dropout=0.5)
    plain, hidden = layer(), torch.randn(1, 6, HIDDEN)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module.eval()(hidden, None)[0], plain.eval()(hidden, None)[0])
    assert not torch.equal(module.train()(hidden, None)[0], module(hidden, None)[0])


def test_expert_bias_moves_the_choice(layer):
    module = layer(router={"score_function": "sigmoid"}, expert_bias=True)
    module.router.expert_bias[2] = 10.0
    _, info = module(torch.randn(2, 6, HIDDEN), None)
    assert int(info.tokens_per_expert[2]) == 12
