"""Which model it is: the one description that everything reads which knows a model.

`MoEModel` is built from it, mapping tables turn it into tensors, Megatron's arguments are written
from it, checkpoints are compared by it. A field of it is declared once, in `ModelConfig` or
`MoEConfig`, with what another value changes; who compares or refuses models asks `settings` and
needs no list of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from moe_megatron.config.fields import Changes, settings_of
from moe_megatron.config.model import ModelConfig
from moe_megatron.config.moe import MoEConfig
from moe_megatron.config.router import RouterConfig

VOCABULARY = "data.vocab_size"


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
        """Whether it has experts."""
        return self.moe.num_experts is not None

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Global numbers of the MoE layers, from 1; empty for a dense model."""
        return self.moe.layer_numbers(self.model.num_layers)

    @property
    def expert_hidden_size(self) -> int:
        """Inner width of one expert, in features."""
        return self.moe.expert_hidden_size or self.model.dense_ffn_size

    def value(self, name: str) -> Any:
        """The value of a field by its dotted name, with what null stands for filled in.

        Fields of groups that the model has not, and options that its router has not, are None.
        """
        if name in _RESOLVED:
            return _RESOLVED[name](self)
        section, *path = name.split(".")
        value: Any = {"model": self.model, "moe": self.moe}[section]
        if path[0] == "router" and len(path) > 1:
            return self.moe.router.to_plain().get(path[1])
        for part in path:
            value = None if value is None else getattr(value, part)
        return value

    def names(self, *changes: Changes, adjustable: bool = True) -> Iterator[str]:
        """Dotted names of the fields whose values change such a thing; each group is one field.

        Fields that mean nothing in this model are left out: those of experts in a dense model, of
        dense MLPs in a model without, of rotary positions where there are none.

        Args:
            *changes: Such things.
            adjustable: Name the fields, too, that a checkpoint may be loaded with another value of.
        """
        for section, config_type in (("model", ModelConfig), ("moe", MoEConfig)):
            for setting in settings_of(config_type):
                name = f"{section}.{setting.path[0]}"
                wanted = setting.changes in changes and (adjustable or not setting.adjustable)
                if len(setting.path) == 1 and wanted and self._matters(name):
                    yield name
        yield VOCABULARY

    def differences(self, other: "Architecture", names: Iterator[str]) -> list[Difference]:
        """The fields among `names` in which another model is different.

        What is null in both and yet stands for different values is not named: it follows from
        another field that is.
        """
        return [
            difference
            for name in names
            if self._written(name) != other._written(name)
            for difference in _differences(name, self.value(name), other.value(name))
        ]

    def _written(self, name: str) -> Any:
        """The value of a field as it was given."""
        section, _, field = name.partition(".")
        parts: dict[str, Any] = {"model": self.model, "moe": self.moe}
        return getattr(parts[section], field) if section in parts else self.value(name)

    def _matters(self, name: str) -> bool:
        if name.startswith("moe."):
            return self.is_moe or name == "moe.num_experts"
        if name == "model.ffn_hidden_size":
            return len(self.moe_layers) < self.model.num_layers
        if name == "model.qk_norm_scope":
            return self.model.qk_norm
        if name == "model.max_position_embeddings":
            return self.model.position_embedding == "learned_absolute"
        if name in {"model.rotary_base", "model.rotary_fraction", "model.rope_scaling"}:
            return self.model.position_embedding == "rope"
        return True


def default_of(name: str) -> Any:
    """The default of a field of `ModelConfig` or `MoEConfig`, by its dotted name."""
    section, _, field = name.partition(".")
    kind = {"model": ModelConfig, "moe": MoEConfig}[section]
    return next(it.default for it in fields(kind) if it.name == field)


def _differences(name: str, ours: Any, theirs: Any) -> Iterator[Difference]:
    """Of a router or a group of fields: the options or fields in which the two differ."""
    if isinstance(ours, RouterConfig) and ours.name == theirs.name:
        for option in dict.fromkeys((*ours.options, *theirs.options)):
            yield from _differences(f"{name}.{option}", ours.option(option), theirs.option(option))
    elif isinstance(ours, RouterConfig):
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
"""Fields that stand for another value where they are null, or say one thing in several ways."""
