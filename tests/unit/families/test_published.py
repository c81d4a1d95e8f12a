"""Configurations in the sizes of published models: they are read, and give as many weights.

Makers give the number of all weights and of those that a token uses, in billions and rounded, some
without embeddings.
"""

from math import prod
from pathlib import Path

import pytest
import yaml

from moe_megatron.families import family_of

MODELS = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_a_published_size_has_the_published_number_of_weights(name: str) -> None:
    model = MODELS[name]
    config = model["config"]
    family = family_of(config)
    geometry = family.geometry(config)
    links = [link for link in family.links(geometry) if not link.key.startswith("mtp.")]
    total = sum(prod(link.shape) for link in links)
    in_experts = sum(prod(link.shape) for link in links if link.expert is not None)
    used = total - in_experts * (1 - geometry.top_k / geometry.experts)
    assert total / 1e9 == pytest.approx(model["total"], rel=0.045)
    assert used / 1e9 == pytest.approx(model["active"], abs=1.5)
    assert family.remarks(config) == ()
    assert bool(family.limits(config)) == bool(family.untrained)
