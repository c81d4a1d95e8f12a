"""Published sizes have as many weights as was published, and the shapes of published `config.json`.

Weights are counted twice: those of the model built on the meta device, and those that the family's
mapping table says a published checkpoint holds.
"""

import functools
import re
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from moe_megatron import architectures
from moe_megatron.architectures import DeepSeekV3, NamedArchitecture, Size, SwitchTransformer
from moe_megatron.config import load_config
from moe_megatron.experts import resolve
from moe_megatron.families import family_of
from tests.unit.architectures.published_configs import PUBLISHED

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"
CLASSES = [getattr(architectures, name) for name in architectures.__all__]
SIZES: list[tuple[type[NamedArchitecture], str]] = [
    (cls, size)
    for cls in CLASSES
    if cls is not Size and issubclass(cls, NamedArchitecture)
    for size in cls.sizes
    if size != "tiny"
]
QUICK = {"mixtral_8x7b", "olmoe_1b_7b"}
"""Others have so many modules that building them takes tens of seconds, or are like these."""
CASES = [
    pytest.param(
        cls,
        size,
        id=str(cls.sizes[size].table),
        marks=() if cls.sizes[size].table in QUICK else pytest.mark.deep,
    )
    for cls, size in SIZES
]
UNLIKE = {
    ("kimi_k2", "total"): 1026.41,
    ("qwen3_30b_a3b", "active"): 3.353,
}
"""What differs by more than 1 % and more than rounding, in thousand millions; `note` says why."""


@functools.cache
def counted(cls: type[NamedArchitecture], size: str) -> tuple[int, int]:
    """Weights of the model on the meta device: all, and those of a token as they are published."""
    model = cls.of_size(size)
    assert all(parameter.is_meta for parameter in model.parameters())
    active = model.num_parameters(active=True)
    if not cls.sizes[size].counts_embedding:
        active -= model.embed_tokens.weight.numel()
    return model.num_parameters(), active


def published_weights(preset: str) -> tuple[int, int]:
    """Weights of a published checkpoint by the family's table, and those of them for prediction."""
    family = family_of(PUBLISHED[preset])
    links = family.links(family.geometry(PUBLISHED[preset]))
    tensors = {block.name: block.shape for link in links for block in link.blocks}
    extra = {block.name for link in links if link.key.startswith("mtp.") for block in link.blocks}
    biases = {name for name in tensors if name.endswith("e_score_correction_bias")}
    numbers = {name: prod(shape) for name, shape in tensors.items() if name not in biases}
    return sum(numbers.values()), sum(numbers[name] for name in extra - biases)


def billions(published: str) -> tuple[float, float]:
    """A published number, and one unit of its last digit."""
    found = re.fullmatch(r"(\d+(?:\.(\d+))?)([BT])", published)
    assert found
    scale = {"B": 1.0, "T": 1000.0}[found[3]]
    return float(found[1]) * scale, scale / 10 ** len(found[2] or "")


def check(preset: str, what: str, ours: int, published: str) -> None:
    value, unit = billions(published)
    number = ours / 1e9
    if (preset, what) in UNLIKE:
        assert number == pytest.approx(UNLIKE[preset, what], rel=1e-3)
        assert abs(number - value) > max(0.01 * value, unit / 2)
    else:
        assert abs(number - value) <= max(0.01 * value, unit / 2), (number, published)


@pytest.mark.parametrize(("cls", "size"), CASES)
def test_model_has_as_many_weights_as_was_published(
    cls: type[NamedArchitecture], size: str
) -> None:
    given, preset = cls.sizes[size], str(cls.sizes[size].table)
    total, active = counted(cls, size)
    whole = total
    if preset in PUBLISHED:
        checkpoint, prediction = published_weights(preset)
        if cls is SwitchTransformer:
            whole = checkpoint
        else:
            assert total == checkpoint - prediction
    for what, ours, published in (("total", whole, given.total), ("active", active, given.active)):
        if published is not None:
            assert given.source
            check(preset, what, ours, published)
        if (preset, what) in UNLIKE:
            assert given.note
    line = next(line for line in PAGE.read_text().splitlines() if f"| `{preset}` |" in line)
    assert f"| {total / 1e9:,.2f} | {active / 1e9:,.2f} |" in line, (line, total, active)
    assert f"| {given.total or ''} | {given.active or ''} |" in line
    assert given.source in line
    assert given.note in line


def test_prediction_of_deepseek_v3_has_the_weights_that_were_published() -> None:
    _, prediction = published_weights("deepseek_v3")
    assert prediction / 1e9 == pytest.approx(11.5, rel=0.01)
    assert DeepSeekV3.run_config("671b").model.num_prediction_layers == 1


@pytest.mark.parametrize("preset", PUBLISHED)
def test_preset_is_what_the_family_reads_from_the_published_configuration(preset: str) -> None:
    found, ours = family_of(PUBLISHED[preset]), load_config(preset).architecture
    theirs = found.geometry(PUBLISHED[preset]).architecture
    ours, theirs = (replace(it, moe=resolve(it.moe)) for it in (ours, theirs))
    names = ours.field_names("tensors", "function", adjustable=False)
    differing = {difference.name for difference in ours.differences(theirs, names)}
    # The decoder of an encoder-decoder model has relative positions, which Megatron does not.
    expected = {"model.position_embedding"} if preset.startswith("switch") else set()
    assert differing == expected


def test_every_size_is_on_the_page_and_says_what_it_lacks() -> None:
    page = PAGE.read_text()
    for cls, size in SIZES:
        assert f"`{cls.__name__}` | `{size}` | `{cls.sizes[size].table}` |" in page
    for cls in {cls for cls, _ in SIZES}:
        assert not cls.lacks or " ".join(cls.lacks.split()) in " ".join(page.split())
