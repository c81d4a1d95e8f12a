import pytest
import torch

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.model import MoEModel


@pytest.mark.parametrize(
    ("router_type", "k", "score_function", "top_k", "pre_softmax"),
    [
        ("top_k", None, "softmax", 2, False),
        ("top_k", 1, "softmax", 1, True),
        ("top_k", 3, "softmax", 3, False),
        ("switch", None, "softmax", 1, True),
        ("sigmoid", None, "sigmoid", 2, False),
        ("sigmoid", 1, "sigmoid", 1, False),
    ],
)
def test_router_types_become_configuration(
    build, router_type, k, score_function, top_k, pre_softmax
):
    moe = build(router_type=router_type, experts_per_token=k).moe_config
    assert moe.router.name == "top_k"
    assert moe.router.options["score_function"] == score_function
    assert (moe.top_k, moe.router.options["pre_softmax"]) == (top_k, pre_softmax)


def test_router_is_named_or_given_with_options(build):
    mixed = build(router_type="sparse_mixer", router={"jitter": 0.1}).moe_config
    assert mixed.router.to_plain() == {"name": "sparse_mixer", "jitter": 0.1}
    scaled = build(router_type="sigmoid", router={"scaling": 2.5}).moe_config.router.options
    assert (scaled["score_function"], scaled["scaling"]) == ("sigmoid", 2.5)


def test_options_become_configuration():
    model = MoEModel(64, 4, 2, 3, vocab_size=50, norm_epsilon=1e-6, capacity_factor=1.5)
    assert (model.model_config.hidden_size, model.model_config.num_layers) == (64, 3)
    assert model.model_config.norm_epsilon == 1e-6
    assert (model.moe_config.num_experts, model.moe_config.capacity_factor) == (4, 1.5)
    assert model.vocab_size == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router_type": "swich"}, "must be .*'top_k', .*'switch' or 'sigmoid', not "
                                   "'swich'. Did you mean 'switch'?"),
        ({"router_type": "switch", "experts_per_token": 2}, r"sends each token to 1 expert, not "
                                                            r"experts_per_token \(2\)"),
        ({"router_type": "switch", "router": "sparse_mixer"}, "is the router 'top_k', but `rout"),
        ({"router": {"jitter": 1}}, "the router 'top_k' has no option 'jitter'"),
        ({"top_k": 2}, "no option 'top_k'; it is called experts_per_token"),
        ({"num_head": 2}, "no option 'num_head'"),
        ({"capacity_facto": 2}, "no option 'capacity_facto'. Did you mean 'capacity_factor'?"),
        ({"experts_per_token": 9}, r"moe.top_k \(9\) must not exceed moe.num_experts \(4\)"),
        ({"hidden_size": 30}, "must be a multiple of model.num_attention_heads"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_expert_weights_hold_what_each_feature_reads_and_writes(build):
    model = build(layer_frequency=(0, 1))
    weights = model.get_expert_weights()
    assert list(weights) == [2]
    assert weights[2].shape == (4, 3 * 24, 32)
    expert = model.layers[1].moe.experts["3"]
    gate, up, down = weights[2][3].split(24)
    assert torch.equal(gate, expert.gate_proj.weight)
    assert torch.equal(up, expert.up_proj.weight)
    assert torch.equal(down, expert.down_proj.weight.T)
    assert not weights[2].requires_grad
    assert build(activation="gelu").get_expert_weights()[1].shape == (4, 2 * 24, 32)


def test_parameter_counts(build):
    model = build()
    total = sum(p.numel() for p in model.parameters())
    assert model.num_parameters() == total
    assert model.num_parameters(active=True) == total - 2 * (4 - 2) * 3 * 24 * 32


@pytest.mark.parametrize("options", [{}, {"position_embedding": "learned_absolute",
                                          "max_position_embeddings": 20}])  # fmt: skip
def test_generate_equals_forward_over_the_whole_text(build, tokens, options):
    model = build(**options)
    with torch.no_grad():
        expected = tokens
        for _ in range(6):
            following = model(expected).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat((expected, following), dim=1)
    assert torch.equal(model.generate(tokens, 6), expected)


def test_generate_with_left_padding_equals_each_prompt_alone(build, tokens):
    model, mask = build(), torch.ones_like(tokens)
    mask[1, :5] = 0
    together = model.generate(tokens, 5, attention_mask=mask)
    assert torch.equal(together[1:2, 12:], model.generate(tokens[1:2, 5:], 5)[:, 7:])


def test_generate_fills_up_rows_that_ended(build, tokens):
    model = build()
    free = model.generate(tokens, 5)
    eos = int(free[0, 13])
    ended = model.generate(tokens, 5, eos_token_id=eos)
    for row, whole in zip(ended[:, 12:].tolist(), free[:, 12:].tolist(), strict=True):
        cut = whole.index(eos) if eos in whole else len(whole)
        assert row[:cut] == whole[:cut][: len(row)]
        assert set(row[cut:]) <= {eos}
    assert model.generate(tokens[:1], 5, eos_token_id=int(free[0, 12])).shape == (1, 13)


def test_generate_samples_reproducibly_among_the_best(build, tokens):
    model = build()

    def sample(seed, **options):
        return model.generate(tokens, 8, generator=torch.Generator().manual_seed(seed), **options)

    assert torch.equal(sample(1, temperature=1.0), sample(1, temperature=1.0))
    assert not torch.equal(sample(1, temperature=1.0), sample(2, temperature=1.0))
    assert torch.equal(sample(1, temperature=1.0, top_k=1), model.generate(tokens, 8))
    assert torch.equal(model.generate(tokens, 0), tokens)


def test_generate_leaves_the_mode_of_the_model(build, tokens):
    model = build(hidden_dropout=0.5).train()
    assert torch.equal(model.generate(tokens, 3), model.generate(tokens, 3))
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, r"max_new_tokens \(-1\) must be a whole number, at least 0"),
        (
            {"max_new_tokens": 1, "temperature": -1.0},
            r"temperature \(-1.0\) must be a number, at least 0",
        ),
        ({"max_new_tokens": 1, "top_k": 0}, r"top_k \(0\) must be a whole number, at least 1"),
    ],
)
def test_generate_refuses_values_out_of_range(build, tokens, options, message):
    with pytest.raises(ConfigError, match=message):
        build().generate(tokens, **options)


def test_generate_refuses_padding_on_the_right(build, tokens):
    mask = torch.ones_like(tokens)
    mask[1, 9:] = 0
    with pytest.raises(DataError, match="ends a row in padding; pad on the left"):
        build().generate(tokens, 1, attention_mask=mask)
