"""Configurations as plain mappings, as a YAML file holds them, and back.

A layer is the checked content of one file, which may give only a few fields. Layers are merged
before the configuration is built, so that values are checked together with those of the base, yet
a wrong key is reported for the file that contains it. This module does not read files.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.config.conform import annotations_of, convert, read, show
from moe_megatron.config.run import SECTIONS, RunConfig
from moe_megatron.errors import ConfigError

# Values of one file: a mapping for each section, a value for each field of `RunConfig` itself.
Layer = dict[str, Any]

_TAGS = ("name", "kind")
"""Fields that identify what a group describes: `moe.router.name`, `model.rope_scaling.kind`."""


def from_mapping(values: Mapping[str, object]) -> RunConfig:
    """Make a configuration from sections of fields; missing fields keep their defaults.

    Raises:
        ConfigError: For an unknown key, a value of the wrong type or one out of range.
    """
    return build(read_layer(values))


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """The whole configuration in plain YAML types; `from_mapping` reads it back."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def apply_overrides(config: RunConfig, overrides: Mapping[str, object]) -> RunConfig:
    """A changed copy of a configuration.

    Args:
        config: The configuration to start from; it stays as it is.
        overrides: Values by dotted name: "moe.top_k", "moe.router.score_function", "run_dir" or
            "megatron.manual-gc".

    Raises:
        ConfigError: For an unknown name, a wrong value, or a result that contradicts itself.
    """
    changes: Layer = {}
    for name, value in overrides.items():
        changes = _combine(changes, read_override(name, value))
    return build(merge(to_mapping(config), changes))


def read_override(name: str, value: object) -> Layer:
    """Check one name and value of `apply_overrides` by themselves.

    Raises:
        ConfigError: For an unknown name or a value of the wrong type.
    """
    section, dot, rest = name.partition(".")
    path = [rest] if section == "megatron" else rest.split(".")
    for part in reversed(path if dot else []):
        value = {part: value}
    return read_layer({section: value})


def read_layer(values: Mapping[str, object]) -> Layer:
    """Check the keys and convert the values of one file, without filling in defaults.

    Raises:
        ConfigError: For an unknown key or a value of the wrong type.
    """
    layer: Layer = {}
    annotations = annotations_of(RunConfig)
    for key, value in values.items():
        if key not in annotations:
            raise ConfigError(f"unknown key '{key}'.{_hint(key, '', annotations)}")
        if key in SECTIONS:
            layer[key] = _read_section(key, {} if value is None else value)
        elif key == "megatron":
            layer[key] = _dashed(convert({} if value is None else value, annotations[key], key))
        else:
            layer[key] = convert(value, annotations[key], key)
    _refuse_preset_as_base(layer)
    return layer


def merge(base: Layer, changes: Layer) -> Layer:
    """Merge the changes over the base: sections and groups field by field, all else as a whole.

    A group whose `name` or `kind` changes is replaced: a new router keeps no option of the old one.
    """
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(below, Mapping)
            and not _changes_tag(below, value)
        ):
            merged[key] = merge(dict(below), dict(value))
        else:
            merged[key] = value
    return merged


def _combine(first: Layer, second: Layer) -> Layer:
    """Combine changes that are given together, in any order; unlike `merge`, replaces no group."""
    both = dict(first)
    for key, value in second.items():
        nested = isinstance(value, Mapping) and isinstance(first.get(key), Mapping)
        both[key] = _combine(first[key], dict(value)) if nested else value
    return both


def _changes_tag(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return any(tag in after and after[tag] != before.get(tag) for tag in _TAGS)


def build(layer: Layer) -> RunConfig:
    """Make the configuration from a merged layer.

    Raises:
        ConfigError: If a value is out of range, or fields of a section contradict each other.
    """
    return RunConfig(
        **{
            key: SECTIONS[key](**value) if key in SECTIONS else value
            for key, value in layer.items()
        }
    )


def _read_section(section: str, values: object) -> Layer:
    if not isinstance(values, Mapping):
        raise ConfigError(f"section '{section}' needs a mapping of fields, not {show(values)}.")
    annotations = annotations_of(SECTIONS[section])
    layer: Layer = {}
    for key, value in values.items():
        if key not in annotations:
            hint = _hint(key, section, annotations)
            raise ConfigError(f"unknown key '{key}' in section '{section}'.{hint}")
        layer[key] = read(value, annotations[key], f"{section}.{key}")
    return layer


def _dashed(flags: Mapping[str, Any]) -> Layer:
    """Flags spelled with dashes, so that a file overrides a flag however its base spells it."""
    dashed = {name.replace("_", "-"): value for name, value in flags.items()}
    # Two spellings of one flag in one file are left for `RunConfig` to reject.
    return dashed if len(dashed) == len(flags) else dict(flags)


def _hint(key: object, section: str, known: Mapping[str, object]) -> str:
    """Where an unknown key belongs, else the nearest known key, else all known keys."""
    word = str(key)
    for other, config_type in SECTIONS.items():
        if other != section and word in annotations_of(config_type):
            return f" It belongs to section '{other}'."
    if section and word in annotations_of(RunConfig):
        return " It belongs to the top level of the file."
    return nearest(word, known) or f" Known are: {join_words(list(known), 'and')}."


def _refuse_preset_as_base(layer: Layer) -> None:
    """Reject `preset` in a file that is not a complete saved configuration: it loads nothing."""
    # Configurations that were saved before there were these sections are complete, too.
    later = {"recovery", "finetune", "adapter", "evaluation", "preferences"}
    saved = layer.keys() >= SECTIONS.keys() - later
    if layer.get("preset") is not None and not saved:
        name = layer["preset"]
        raise ConfigError(
            f"preset '{name}' only notes where a saved configuration came from; to start from it, "
            f"write 'base: {name}'."
        )


def _plain(value: Any) -> Any:
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
