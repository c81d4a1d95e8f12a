"""Places of matrices: the names that links give the weights of Megatron's whole model.

A link knows layers and experts by their numbers, a place has them in its name. It does not know
tensors.
"""

from collections.abc import Iterable

from moe_megatron.families.links import Link, of_layer

_EXPERTS = ".experts.experts."
_ONE_EXPERT = ".experts.local_experts.{expert}."


def place_of(link: Link) -> str:
    """The place of a link's matrix: the name of its weight in the local layer spec, on one process.

    An expert's is `decoder.layers.0.mlp.experts.local_experts.3.linear_fc1.weight`.
    """
    name = of_layer(link.key, link.layer)
    return name.replace(_EXPERTS, _ONE_EXPERT.format(expert=link.expert), 1)


def by_place(links: Iterable[Link]) -> dict[str, Link]:
    """The links of all matrices [out, in], by their places; vectors are left out."""
    return {place_of(link): link for link in links if len(link.shape) == 2}
