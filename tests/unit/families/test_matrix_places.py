from moe_megatron.config.parameter_roles import role_of
from moe_megatron.families.links import Link
from moe_megatron.families.matrix_places import by_place, place_of
from moe_megatron.model import MoEModel
from moe_megatron.model.links import links_of


def test_a_place_has_the_numbers_of_layer_and_expert():
    links = by_place(links_of(MoEModel(hidden_size=16, num_experts=4, num_layers=2).architecture))
    assert "decoder.layers.1.mlp.experts.local_experts.3.linear_fc1.weight" in links
    assert "decoder.layers.0.self_attention.linear_qkv.weight" in links
    assert "embedding.word_embeddings.weight" in links
    assert "decoder.final_layernorm.weight" not in links
    experts = [place for place in links if role_of(place) == "experts"]
    assert len(experts) == 2 * 4 * 2


def test_a_layer_for_prediction_has_its_place():
    link = Link(
        key="mtp.layers.0.transformer_layer.mlp.experts.experts.linear_fc2.weight",
        expert=1,
        shape=(8, 4),
        blocks=(),
    )
    assert place_of(link) == (
        "mtp.layers.0.transformer_layer.mlp.experts.local_experts.1.linear_fc2.weight"
    )
