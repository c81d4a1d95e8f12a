"""docs/verification/ has a complete card for each family. The numbers in it are not judged here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_megatron.families import FAMILIES, family_of
from moe_megatron.testing import tiny_models

CARDS = Path(__file__).parents[2] / "docs" / "verification"
NAMES = sorted({family.name for family in FAMILIES.values()})
KEYS = ["family", "architecture", "versions", "examples", "parallel_layouts", "not_verified"]
EXAMPLE_KEYS = [
    "round_trip",
    "structure_and_weights",
    "logits_fp32",
    "logits_bf16",
    "differs_in_megatron",
    "training",
]
LOGITS_KEYS = {"positions", "spread", "max_difference", "mean_difference", "top1_agreement"}


def card(name: str) -> dict[str, Any]:
    found = yaml.safe_load((CARDS / f"{name}.yaml").read_text())
    assert isinstance(found, dict)
    return found


def examples() -> list[tuple[str, str]]:
    return [(family, name) for name, (family, _) in tiny_models.EXAMPLES.items()]


def test_every_family_has_a_card_and_no_card_is_left_over() -> None:
    assert sorted(path.stem for path in CARDS.iterdir()) == NAMES


def test_the_pages_name_and_count_every_family() -> None:
    root = CARDS.parents[1]
    rows = (root / "docs" / "checkpoints.md").read_text().partition("## Families")[2]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|[^|]*\|([^|]*)\|", rows, re.M))))
    assert named - {"model_type"} == set(NAMES)
    assert f" {len(NAMES)} families" in (root / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_was_verified_and_what_not(name: str) -> None:
    found = card(name)
    assert list(found) == KEYS
    assert found["family"] == name
    assert found["architecture"] == FAMILIES[name].architecture
    assert found["versions"].keys() == {"torch", "transformers", "megatron-core"}
    assert sorted(found["examples"]) == sorted(n for f, n in examples() if f == name)
    assert found["not_verified"]


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_saved_what_it_loaded(name: str) -> None:
    layouts = card(name)["parallel_layouts"]
    if FAMILIES[name].untrained:
        assert layouts == "none: does not train here"
        return
    assert {"tp2", "pp2"} <= layouts.keys()
    for layout in layouts.values():
        assert layout["max_difference"] < 1e-4
        assert re.fullmatch(r"\d+ tensors bit-identical|not exported: .*", layout["saved"])


@pytest.mark.parametrize(("family", "name"), examples())
def test_an_example_has_every_result(family: str, name: str) -> None:
    found = card(family)["examples"][name]
    assert list(found) == EXAMPLE_KEYS
    assert found["round_trip"].keys() == {"classic", "fused"}
    for layout in ("classic", "fused"):
        assert re.fullmatch(r"\d+ tensors bit-identical", found["round_trip"][layout])
    assert re.fullmatch(r"\d+ matrices the same", found["structure_and_weights"])
    for logits in (found["logits_fp32"], found["logits_bf16"]):
        assert isinstance(logits, str) or logits.keys() == LOGITS_KEYS
    assert isinstance(found["training"], str) or found["training"].keys() == {"losses"}


@pytest.mark.parametrize(("family", "name"), examples())
def test_an_example_names_what_megatron_computes_differently(family: str, name: str) -> None:
    config = tiny_models.config_of(name)
    assert card(family)["examples"][name]["differs_in_megatron"] == list(
        family_of(config).limits(config)
    )
