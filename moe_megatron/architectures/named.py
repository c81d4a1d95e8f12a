"""`NamedArchitecture`: a `MoEModel` whose defaults are a table, and whose sizes are tables, too.

An architecture is one subclass:

    class Wide(NamedArchitecture):
        table = {"base": "architectures/mixtral", "moe": {"num_experts": 32, "top_k": 4}}

It knows how options become fields of a configuration. It does not know any architecture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch

from moe_megatron.config import ModelConfig, MoEConfig, RunConfig, apply_overrides, load_config
from moe_megatron.config.architecture import VOCABULARY, Architecture
from moe_megatron.config.arguments import explained, meant, shown
from moe_megatron.config.checks import clipped, join_words, nearest
from moe_megatron.errors import ConfigError
from moe_megatron.model.language_model import LanguageModel
from moe_megatron.models import MoEModel

Table = str | Mapping[str, Any]
"""The name of a preset, the path of a YAML file, or a mapping of what such a file would hold."""
Fields = Mapping[str, Any]
"""Values by the dotted names of a run's configuration, such as "moe.top_k"."""

TINY = "tiny"

_PLACES: Mapping[str, str] = {
    **{field.name: f"model.{field.name}" for field in fields(ModelConfig)},
    **{field.name: f"moe.{field.name}" for field in fields(MoEConfig)},
    "experts_per_token": "moe.top_k",
    "vocab_size": VOCABULARY,
}
"""Options that every architecture has, and the fields that they set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One size of an architecture, with what was published about it."""

    table: Table
    """The whole configuration of a run at this size."""
    total: str | None = None
    """Number of weights as it was published, such as "46.7B", without those of multi-token
    prediction; None: none was."""
    active: str | None = None
    """Number of weights that a token uses."""
    source: str = ""
    """Where these numbers are published."""
    counts_embedding: bool = True
    """Whether `active` counts the embedding, of which a token uses one row, beside the output
    projection."""
    note: str = ""
    """Why ours differ, if they do."""


@explained
class NamedArchitecture(MoEModel):
    """A `MoEModel` with the choices of an architecture.

    Args:
        **options: Options of the architecture (`arguments`), any field of `ModelConfig` and
            `MoEConfig` by its name, or `vocab_size`. They win over the table. Of a field that is a
            group, such as `latent_attention`, a mapping changes the fields that it names.

    Raises:
        ConfigError: An option is unknown or wrong, or `MoEModel` does not compute the model;
            `run_config` gives its configuration for Megatron, which may.
    """

    table: ClassVar[Table]
    """The architecture at its default size."""
    sizes: ClassVar[Mapping[str, Size]] = {}
    """Further sizes by name."""
    arguments: ClassVar[Mapping[str, Callable[[Any], Fields]]] = {}
    """Options that only this architecture has, as functions from their value to fields."""
    lacks: ClassVar[str] = ""
    """What is not modelled of what was published, as a sentence."""

    def __init__(self, **options: Any) -> None:
        LanguageModel.__init__(self, self._computed(self.run_config(**options), options))

    @classmethod
    def tiny(cls, *, device: torch.device | str = "cpu", **options: Any) -> Self:
        """The smallest model that still has every part of the architecture, for tests.

        Args:
            device: Where to put its weights, as for `of_size`.
            **options: As for the class.

        Raises:
            ConfigError: As the class, or the architecture has no such size.
        """
        return cls.of_size(TINY, device=device, **options)

    @classmethod
    def of_size(cls, size: str, *, device: torch.device | str = "meta", **options: Any) -> Self:
        """A model of one of the `sizes`.

        Args:
            size: Its name.
            device: Where to put its weights, which are random. On "meta" it has no weights, only
                shapes, however large it is.
            **options: As for the class.

        Raises:
            ConfigError: There is no such size; otherwise as the class.
        """
        architecture = cls._computed(cls.run_config(size, **options), options)
        with torch.device(device):
            return cls.from_architecture(architecture)

    @classmethod
    def run_config(cls, size: str | None = None, **options: Any) -> RunConfig:
        """The configuration of a run that trains such a model in Megatron.

        Args:
            size: One of `sizes`; None: the default size.
            **options: As for the class.

        Raises:
            ConfigError: There is no such size or option, or a value is wrong.
        """
        if size is not None and size not in cls.sizes:
            known = list(cls.sizes)
            raise ConfigError(
                f"{cls.__name__} has no size {shown(size)}.{nearest(str(size), known)} It has "
                f"{join_words(known, 'and') or 'only its default size'}."
            )
        if size is None and not hasattr(cls, "table"):
            raise ConfigError(
                f"{cls.__name__} has no table; give a subclass one, as in table = {{'moe': "
                "{'num_experts': 32}}, or build one of moe_megatron.architectures, or a MoEModel."
            )
        config = load_config(cls.table if size is None else cls.sizes[size].table)
        return apply_overrides(config, cls._fields(config, options))

    @classmethod
    def of_layers(cls, config: RunConfig, num_layers: int) -> Fields:
        """Fields that list something for each layer, for another number of layers.

        Args:
            config: The table.
            num_layers: The number of layers.
        """
        return {}

    @classmethod
    def _computed(cls, config: RunConfig, options: Mapping[str, Any]) -> Architecture:
        """What `MoEModel` computes: without multi-token prediction, unless it is asked for."""
        architecture = config.architecture
        if "num_prediction_layers" in options:
            return architecture
        return replace(architecture, model=replace(architecture.model, num_prediction_layers=0))

    @classmethod
    def _fields(cls, config: RunConfig, options: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in options.items():
            if name in cls.arguments:
                given = cls.arguments[name](value)
            elif name in _PLACES:
                given = {_PLACES[name]: value}
            else:
                known = [*cls.arguments, *_PLACES]
                own = join_words(list(cls.arguments), "and")
                raise ConfigError(
                    f"{cls.__name__} has no option '{clipped(name)}'.{meant(name, known)} Options "
                    f"are {own + ', ' if own else ''}vocab_size, and the fields of ModelConfig and "
                    "MoEConfig."
                )
            if twice := found.keys() & given.keys():
                raise ConfigError(
                    f"{cls.__name__}: {name} and another option both set {twice.pop()}; keep one."
                )
            found |= given
        layers = found.get("model.num_layers")
        if type(layers) is int and layers > 0:
            return {**cls.of_layers(config, layers), **found}
        return found


def field(name: str) -> Callable[[Any], Fields]:
    """An option that sets a field under another name."""
    return lambda value: {name: value}


def every_other(num_layers: int) -> list[int]:
    """0 and 1 in turn, a number for each layer."""
    return [layer % 2 for layer in range(num_layers)]
