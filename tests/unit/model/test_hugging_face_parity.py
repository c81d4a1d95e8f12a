"""Our decoder against Hugging Face's Mixtral with the same weights."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from moe_megatron.model import MoEModel


@pytest.fixture
def pair():
    """Makes a Mixtral model and ours with its weights."""

    def make(groups):
        torch.manual_seed(0)
        theirs = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=61,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=groups,
                num_local_experts=4,
                num_experts_per_tok=2,
                initializer_range=0.3,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 5000},
                output_router_logits=True,
                attn_implementation="eager",
            )
        ).eval()
        ours = MoEModel(
            hidden_size=32, num_experts=4, num_layers=2, vocab_size=61, num_attention_heads=4,
            num_query_groups=groups, expert_hidden_size=48, tie_embeddings=False,
            norm_epsilon=1e-5, rotary_base=5000,
        ).eval()  # fmt: skip
        ours.load_state_dict(dict(translate(theirs.state_dict())))
        return theirs, ours

    return make


def translate(weights):
    """Yields our names and tensors for theirs; they keep the experts of a layer stacked."""
    parts = {
        "model.embed_tokens": "embed_tokens", "model.norm": "final_norm", "model.layers": "layers",
        "self_attn": "attention", "input_layernorm": "input_norm",
        "post_attention_layernorm": "mlp_norm", "mlp.gate.": "moe.router.",
        "mlp.experts": "moe.experts",
    }  # fmt: skip
    for name, tensor in weights.items():
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        if not name.endswith(("gate_up_proj", "down_proj")):
            yield name, tensor
            continue
        experts, _, matrix = name.rpartition(".")
        for number, stacked in enumerate(tensor):
            if matrix == "down_proj":
                yield f"{experts}.{number}.down_proj.weight", stacked
            else:
                gate, up = stacked.chunk(2)
                yield f"{experts}.{number}.gate_proj.weight", gate
                yield f"{experts}.{number}.up_proj.weight", up


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_logits_and_loss_equal_mixtral(pair, tokens, groups):
    theirs, ours = pair(groups)
    with torch.no_grad():
        expected, got = theirs(tokens), ours(tokens, labels=tokens)
        expected_loss = theirs(tokens, labels=tokens, output_router_logits=False).loss
    assert float(expected.logits.std()) > 0.3  # else anything would be close
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.lm_loss, expected_loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_with_padding_equal_mixtral(pair, tokens, side):
    theirs, ours = pair(2)
    mask = torch.ones_like(tokens)
    mask[1, slice(0, 4) if side == "left" else slice(8, None)] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=mask, position_ids=positions).logits
        got = ours(tokens, mask).logits
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)


def test_generated_tokens_equal_mixtral(pair, tokens):
    theirs, ours = pair(2)
    expected = theirs.generate(
        tokens, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ours.generate(tokens, 8), expected)
