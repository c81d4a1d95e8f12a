"""The architecture of a model: the one description that all code dealing with a model reads.

`MoEModel` is built from it, mapping tables turn it into tensors, Megatron's arguments are written
from it, and checkpoints are compared by it. Each of its fields is declared once, in `ModelConfig`
or `MoEConfig`, together with what changing its value affects; code that compares or rejects models
reads those declarations (`settings_of`) and keeps no list of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from typing import Any

from moe_megatron.config.conform import annotations_of, group_of
from moe_megatron.config.fields import Changes, Setting, settings_of
from moe_megatron.config.model import ModelConfig
from moe_megatron.config.moe import MoEConfig
from moe_megatron.config.named import Named

VOCABULARY = "data.vocab_size"
_SECTIONS: Mapping[str, type] = {"model": ModelConfig, "moe": MoEConfig}


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A field in which two models differ."""

    name: str
    """Dotted name in a run's configuration."""
    ours: Any
    theirs: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Everything that decides which parameters a model has, and what it computes."""

    model: ModelConfig
    """The transformer around the experts."""
    moe: MoEConfig
    """Experts and router."""
    vocab_size: int
    """Entries of the vocabulary."""

    @property
    def is_moe(self) -> bool:
        """Whether the model has experts."""
        return self.moe.num_experts is not None

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Global numbers of the MoE layers, from 1; empty for a dense model."""
        return self.moe.layer_numbers(self.model.num_layers)

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """Numbers of all layers with experts: the MoE layers, and those for multi-token prediction.

        The latter are of the kind of the last layer, and are numbered on after it.
        """
        last, found = self.model.num_layers, self.moe_layers
        if last not in found:
            return found
        return (*found, *range(last + 1, last + 1 + self.model.num_prediction_layers))

    @property
    def expert_hidden_size(self) -> int:
        """Inner width of one expert, in features."""
        return self.moe.expert_hidden_size or self.model.dense_ffn_size

    def value(self, name: str) -> Any:
        """The value of a field by its dotted name; a null is resolved to the value it stands for.

        Returns None for fields of a group, or options of a router or expert, that the model does
        not have.
        """
        if name in _RESOLVED:
            return _RESOLVED[name](self)
        section, *path = name.split(".")
        value: Any = {"model": self.model, "moe": self.moe}[section]
        for part in path:
            if isinstance(value, Named):
                return value.to_plain().get(part)
            value = None if value is None else getattr(value, part)
        return value

    def field_names(self, *changes: Changes, adjustable: bool = True) -> Iterator[str]:
        """Dotted names of the fields whose value affects `changes`; a group counts as one field.

        A group may be adjustable only if all of its fields are.

        Fields that mean nothing in this model are left out: experts in a dense model, dense MLPs in
        a model without any, rotary positions where there are none.

        Args:
            *changes: What the fields affect: "tensors", "function" or "training".
            adjustable: Also include fields whose value may differ when a checkpoint is loaded.
        """
        for section, config_type in _SECTIONS.items():
            for settings in _by_field(config_type):
                name = f"{section}.{settings[0].path[0]}"
                may_differ = all(setting.adjustable for setting in settings)
                wanted = settings[0].changes in changes and (adjustable or not may_differ)
                if wanted and self._matters(name):
                    yield name
        yield VOCABULARY

    def leaf_names(self, *changes: Changes) -> Iterator[str]:
        """As `field_names`, with the fields of a group in place of a group that the model has."""
        for name in self.field_names(*changes):
            value = self.value(name)
            if is_dataclass(value) and not isinstance(value, Named):
                yield from (f"{name}.{field.name}" for field in fields(value))
            else:
                yield name

    def differences(self, other: "Architecture", names: Iterator[str]) -> list[Difference]:
        """The fields among `names` in which another model differs from this one.

        A field that is null in both models but resolves to different values is not reported: the
        difference follows from another field that is.
        """
        return [
            difference
            for name in names
            if self._as_given(name) != other._as_given(name)
            for difference in _differences(name, self.value(name), other.value(name))
        ]

    def _as_given(self, name: str) -> Any:
        """The value of a field as the configuration gives it, nulls not resolved."""
        section, _, field = name.partition(".")
        parts: dict[str, Any] = {"model": self.model, "moe": self.moe}
        return getattr(parts[section], field) if section in parts else self.value(name)

    def _matters(self, name: str) -> bool:
        if name.startswith("moe."):
            return self.is_moe or name == "moe.num_experts"
        if name == "model.ffn_hidden_size":
            return len(self.moe_layers) < self.model.num_layers
        if name in {"model.qk_norm_scope", "model.qk_norm_after_rotation"}:
            return self.model.qk_norm
        if name == "model.max_position_embeddings":
            return self.model.position_embedding == "learned_absolute"
        if name in _ROTARY:
            return self.model.position_embedding == "rope"
        return True


_ROTARY = frozenset(
    "model.rotary_base model.rotary_fraction model.rotary_interleaved model.rope_scaling".split()
)
"""Fields that mean something only where positions are rotary."""


def default_of(name: str) -> Any:
    """The default of a field of `ModelConfig` or `MoEConfig`, or of a group, by its dotted name."""
    section, *path = name.split(".")
    kind: Any = _SECTIONS[section]
    for part in path[:-1]:
        kind = group_of(annotations_of(kind)[part])
    return next(field.default for field in fields(kind) if field.name == path[-1])


def _by_field(config_type: type) -> Iterator[list[Setting]]:
    """The settings of each field of a section: its own, followed by those of its group."""
    for _, settings in groupby(settings_of(config_type), key=lambda setting: setting.path[0]):
        yield list(settings)


def _differences(name: str, ours: Any, theirs: Any) -> Iterator[Difference]:
    """The differences of one field; of a choice or a group, each option or field that differs."""
    if isinstance(ours, Named) and ours.name == theirs.name:
        for option in dict.fromkeys((*ours.options, *theirs.options)):
            yield from _differences(f"{name}.{option}", ours.option(option), theirs.option(option))
        if not ours.is_code_of(theirs):
            yield Difference(name=f"{name}.sha256", ours=ours.sha256, theirs=theirs.sha256)
    elif isinstance(ours, Named):
        yield Difference(name=f"{name}.name", ours=ours.name, theirs=theirs.name)
    elif is_dataclass(ours) and type(ours) is type(theirs):
        for field in fields(ours):
            one, other = getattr(ours, field.name), getattr(theirs, field.name)
            yield from _differences(f"{name}.{field.name}", one, other)
    elif ours != theirs:
        yield Difference(name=name, ours=ours, theirs=theirs)


_RESOLVED = {
    VOCABULARY: lambda it: it.vocab_size,
    "model.num_query_groups": lambda it: it.model.key_value_heads,
    "model.head_dim": lambda it: it.model.attention_head_dim,
    "model.ffn_hidden_size": lambda it: it.model.dense_ffn_size,
    "model.attention_multiplier": lambda it: it.model.softmax_scale,
    "moe.expert_hidden_size": lambda it: it.expert_hidden_size,
    "moe.layer_frequency": lambda it: it.moe_layers,
}
"""How to resolve fields that have a computed default, or several spellings of one value."""
