"""The dashboards through the eyes of Grafana's own models: no key and no value of ours is lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

FILES = sorted((Path(__file__).parents[3] / "grafana" / "dashboards").glob("*.json"))


def through_grafanas_models(dashboard: dict[str, Any]) -> dict[str, Any]:
    register_default_plugins()
    text = JSONEncoder().encode(Dashboard.from_json(dashboard))
    read: dict[str, Any] = json.loads(text)
    return read


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Paths of what is ours and not theirs, who may have more: they write defaults out."""
    parts: list[tuple[str, Any, Any]] = []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        parts = [(f".{key}", value, theirs.get(key)) for key, value in ours.items()]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        parts = [(f"[{number}]", one, other) for number, (one, other) in pairs]
    if parts:
        return [it for step, one, other in parts for it in lost(one, other, path + step)]
    return [] if ours == theirs else [path]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_is_lost(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    assert lost(dashboard, through_grafanas_models(dashboard)) == []


@pytest.mark.parametrize("place", ["options", "fieldConfig"])
def test_a_misspelt_key_is_found(place: str) -> None:
    dashboard = json.loads(FILES[-1].read_text())
    number = next(n for n, panel in enumerate(dashboard["panels"]) if place in panel)
    dashboard["panels"][number][place]["misspelt"] = 1
    found = lost(dashboard, through_grafanas_models(dashboard))
    assert found == [f".panels[{number}].{place}.misspelt"]
