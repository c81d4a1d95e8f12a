import math

import pytest
import torch

from moe_megatron.config import Architecture, ModelConfig, MoEConfig
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.model import MoEModel

POSITIONS = [
    {},
    {"position_embedding": "none"},
    {"position_embedding": "learned_absolute", "max_position_embeddings": 16},
]


@pytest.mark.parametrize("options", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_each_row_alone(build, tokens, side, options):
    model = build(**options)
    lengths = [12, 7, 3]
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        mask[row, slice(12 - length, None) if side == "left" else slice(0, length)] = 1
    together = model(tokens, mask)
    assert not together.logits.isnan().any()
    for row in range(3):
        alone = model(tokens[row][mask[row].bool()][None])
        torch.testing.assert_close(
            together.logits[row][mask[row].bool()], alone.logits[0], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_losses_ignore_padding(build, tokens, side):
    model = build()
    pad = torch.zeros(3, 4, dtype=torch.int64)
    order = (pad, tokens) if side == "left" else (tokens, pad)
    mask = torch.cat([(part is tokens) * torch.ones_like(part) for part in order], dim=1)
    padded_ids = torch.cat(order, dim=1)
    padded, plain = model(padded_ids, mask, padded_ids), model(tokens, labels=tokens)
    for name in ("lm_loss", "aux_loss", "z_loss", "router_loss", "loss"):
        torch.testing.assert_close(getattr(padded, name), getattr(plain, name), msg=name)


def test_row_of_padding_only_stays_finite(build, tokens):
    mask = torch.ones_like(tokens)
    mask[1] = 0
    output = build()(tokens, mask, tokens)
    output.loss.backward()
    assert output.logits.isfinite().all()
    nothing = build()(tokens, torch.zeros_like(tokens), tokens)
    assert float(nothing.loss) == 0.0


def test_later_tokens_do_not_change_earlier_logits(build, tokens):
    model, changed = build(), tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 61
    before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(before[:, :6], after[:, :6], atol=1e-5, rtol=1e-4)
    assert not before[:, 6:].allclose(after[:, 6:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_embeddings": False, "qk_norm": True, "shared_expert_hidden_size": 16},
        {"layer_frequency": (0, 1), "norm": "LayerNorm"},
        {"num_experts": None},
        {"activation": "gelu", "add_bias": True, "position_embedding": "learned_absolute",
         "max_position_embeddings": 12},
        {"router_type": "switch", "hidden_dropout": 0.1, "attention_dropout": 0.1},
        {"router_type": "sigmoid",
         "router": {"expert_groups": 2, "group_top_k": 1, "scaling": 2.0}},
        {"router_type": "sparse_mixer"},
        {"qkv_bias": True, "rotary_fraction": 0.5},
        {"shared_expert_hidden_size": 8, "shared_expert_gate": True},
    ],
)  # fmt: skip
def test_every_parameter_gets_a_gradient(build, tokens, options):
    model = build(**options)
    model(tokens, labels=tokens).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias on keys shifts all scores of a query alike, so its gradient is zero but for rounding;
    # rope would change that, learned positions do not.
    assert [name for name in without if "k_proj.bias" not in name] == []


def test_lm_loss_is_cross_entropy_of_the_next_token(build, tokens):
    labels = tokens.clone()
    labels[0, 5] = -100
    output = build()(tokens, labels=labels)
    log_probs = output.logits.log_softmax(-1)
    losses = [
        -float(log_probs[row, place, tokens[row, place + 1]])
        for row in range(3)
        for place in range(11)
        if (row, place + 1) != (0, 5)
    ]
    assert float(output.lm_loss) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_router_loss_is_the_weighted_sum_over_layers(build, tokens):
    output = build(aux_loss_coef=0.5, z_loss_coef=0.25)(tokens, labels=tokens)
    expected = sum(0.5 * float(i.aux_loss) + 0.25 * float(i.z_loss) for i in output.routing)
    assert float(output.router_loss) == pytest.approx(expected, rel=1e-5)
    assert float(output.aux_loss) == pytest.approx(
        sum(float(i.aux_loss) for i in output.routing) / 2
    )
    torch.testing.assert_close(output.loss, output.lm_loss + output.router_loss)


def test_router_that_sees_no_difference_is_balanced_in_probability(build, tokens):
    model = build()
    for layer in model.layers:
        torch.nn.init.zeros_(layer.moe.router.weight)
    output = model(tokens)
    assert float(output.aux_loss) == pytest.approx(1.0)
    assert float(output.z_loss) == pytest.approx(math.log(4) ** 2)
    assert float(output.routing[0].entropy) == pytest.approx(math.log(4))


def test_balancing_none_adds_no_aux_loss(build, tokens):
    output = build(load_balancing="none", z_loss_coef=0.0)(tokens, labels=tokens)
    assert float(output.router_loss) == 0.0
    assert float(output.aux_loss) > 0.0


def test_dense_model_has_no_routing(build, tokens):
    output = build(num_experts=None)(tokens, labels=tokens)
    assert output.routing == ()
    assert float(output.router_loss) == 0.0


def test_same_seed_gives_the_same_model_and_another_seed_another(build, tokens):
    assert torch.equal(build(seed=1)(tokens).logits, build(seed=1)(tokens).logits)
    assert not torch.equal(build(seed=1)(tokens).logits, build(seed=2)(tokens).logits)


def test_parameter_names_are_the_documented_ones(build):
    model = build(num_layers=2, layer_frequency=(0, 1), num_experts=2, qk_norm=True,
                  tie_embeddings=False, shared_expert_hidden_size=8)  # fmt: skip
    attention = [f"{part}.weight" for part in
                 ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]  # fmt: skip
    mlp = [f"{part}_proj.weight" for part in ("gate", "up", "down")]
    expected = {"embed_tokens.weight", "final_norm.weight", "lm_head.weight"}
    for layer in ("layers.0", "layers.1"):
        expected |= {f"{layer}.input_norm.weight", f"{layer}.mlp_norm.weight"}
        expected |= {f"{layer}.attention.{name}" for name in attention}
    expected |= {f"layers.0.mlp.{name}" for name in mlp}
    expected |= {"layers.1.moe.router.weight"}
    for owner in ("experts.0", "experts.1", "shared_expert"):
        expected |= {f"layers.1.moe.{owner}.{name}" for name in mlp}
    assert set(model.state_dict()) == expected
    assert dict(model.named_parameters())["layers.1.moe.router.weight"].shape == (2, 32)


def test_initial_weights_follow_megatron():
    torch.manual_seed(0)
    model = MoEModel(hidden_size=256, num_layers=8, init_std=0.05, tie_embeddings=False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = 0.05 / math.sqrt(2 * 8) if writes else 0.05
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.05), name


def test_bfloat16_model_routes_in_float32(build, tokens):
    model = build().to(torch.bfloat16)
    output = model(tokens, labels=tokens)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert output.routing[0].weights.dtype == torch.float32
    torch.testing.assert_close(output.loss, build()(tokens, labels=tokens).loss, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            torch.zeros(4, dtype=torch.int64),
            r"shape \[batch, seq\].*not torch.int64 of shape \[4\]",
        ),
        (torch.zeros(1, 4), "whole numbers of shape .* not torch.float32"),
        (torch.zeros(1, 0, dtype=torch.int64), "at least one token"),
        (torch.tensor([[1, 99]]), "hold 99, but this model has ids 0 to 60; use the tokenizer"),
        (torch.tensor([[1, -1]]), "hold -1, but this model has ids 0 to 60"),
    ],
)
def test_wrong_tokens_are_refused(build, ids, message):
    with pytest.raises(DataError, match=message):
        build()(ids)


def test_mask_and_labels_of_another_shape_are_refused(build, tokens):
    with pytest.raises(
        DataError, match=r"attention_mask must have the shape .*\[3, 12\], not \[3, 4\]"
    ):
        build()(tokens, torch.ones(3, 4))
    with pytest.raises(DataError, match="labels must have the shape"):
        build()(tokens, labels=tokens[:, 1:])


def test_more_tokens_than_learned_positions_are_refused(build, tokens):
    model = build(position_embedding="learned_absolute", max_position_embeddings=8)
    with pytest.raises(DataError, match=r"12 tokens exceed .* \(8\)"):
        model(tokens)


@pytest.mark.parametrize(
    ("model", "moe", "vocab_size", "message"),
    [
        ({}, {}, 0, "vocab_size must be a whole number of at least 1, not 0"),
        ({}, {}, "8k", "vocab_size must be a whole number of at least 1, not '8k'"),
        ({"position_embedding": "learned_absolute"}, {}, 8, "needs model.max_position_embeddings"),
        (
            {},
            {"load_balancing": "sinkhorn", "aux_loss_coef": 0},
            8,
            "does not route with .*'sinkhorn'",
        ),
        (
            {"add_bias": True},
            {"shared_expert_hidden_size": 8},
            8,
            "does not work with a shared expert",
        ),
        ({}, {"layer_frequency": (1, 0)}, 8, "has 2 entries for model.num_layers"),
        (
            {"num_prediction_layers": 1},
            {},
            8,
            r"not compute model.num_prediction_layers \(1\). Megatron",
        ),
        ({"rope_scaling": {"factor": 2}}, {}, 8, "not compute model.rope_scaling. Megatron"),
        ({}, {"router": "nowhere"}, 8, "there is no router 'nowhere'"),
    ],
)
def test_unsupported_configurations_are_refused(model, moe, vocab_size, message):
    with pytest.raises(ConfigError, match=message):
        MoEModel.from_architecture(
            Architecture(model=ModelConfig(**model), moe=MoEConfig(**moe), vocab_size=vocab_size)
        )
