"""A family: a table of tensors and a table of configuration fields, each read in two directions.

It knows how to get a model's sizes, tensors, run configuration and `config.json` from the tables,
but no particular family.
"""

import re
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from moe_megatron.config import Architecture, MoEConfig, RouterConfig, RunConfig
from moe_megatron.config.architecture import Difference
from moe_megatron.config.mapping import from_mapping, to_mapping
from moe_megatron.errors import MappingError
from moe_megatron.families import fields as config_fields
from moe_megatron.families import rope, sensible
from moe_megatron.families.fields import Checked
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.hf_config import HfConfig
from moe_megatron.families.links import Link
from moe_megatron.families.redundant import Redundant, rotary_buffers
from moe_megatron.families.settings import (
    EVERY_LAYER,
    NO_LAYER,
    TOP_K_ROUTER,
    Field,
    Pattern,
    run_value,
    set_nested,
)
from moe_megatron.families.table import Row, carried, expand, kept_links

DOES_NOT_TRAIN = "a model of this family does not train here"
"""How the limits of a family begin that only converts."""
LONGEST_SEQUENCE = 1024
"""Longest training sequence that an import proposes, in tokens: what a laptop can begin with."""
_FIRST_TRAINING = {"micro_batch_size": 1, "learning_rate": 2e-5, "min_learning_rate": 2e-6}
"""Training that goes on with a finished model; the defaults are those of a new, small one."""
Names = Collection[str] | None
_FUSED = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_ROUTER = "moe.router."
_EMBEDDING = "embedding.word_embeddings.weight"


def sigmoid_limits(config: HfConfig, geometry: Geometry) -> list[str]:
    """For `limits_of`: Megatron scales the sigmoid weights of a token's experts to a sum of 1."""
    if config.get("norm_topk_prob", True) == (geometry.top_k > 1):
        return []
    return ["Megatron normalizes expert weights if top_k is more than 1, and never if it is 1."]


def _no_links(geometry: Geometry) -> list[Link]:
    return []


def no_fields(config: HfConfig) -> dict[str, Any]:
    """For `computed_fields`: none."""
    return {}


def _no_fields_from_names(config: HfConfig, names: Names) -> dict[str, Any]:
    return {}


def _no_limits(config: HfConfig, geometry: Geometry) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A Hugging Face architecture and its mapping to Megatron."""

    name: str
    """`model_type` of its configurations."""
    architecture: str
    """The transformers class that loads it."""
    rows: tuple[Row, ...]
    """Its tensors."""
    fields: tuple[Field, ...]
    """Keys of its `config.json`."""
    computed_fields: Callable[[HfConfig], dict[str, Any]] = no_fields
    """Computes dotted fields of a run that do not correspond to one key of `config.json`."""
    fields_from_names: Callable[[HfConfig, Names], dict[str, Any]] = _no_fields_from_names
    """Corrects dotted fields of a run by the names of the tensors that a checkpoint holds."""
    layout: Callable[[HfConfig, Names], dict[str, Any]] = _no_fields_from_names
    """Fields of `Geometry` beyond the architecture, from a configuration and tensor names."""
    pattern: Pattern = EVERY_LAYER
    """Which layers are MoE layers."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Dotted fields of a run that have the same value in every member of the family, if that is not
    the default of `ModelConfig`, `MoEConfig` or the top-k router."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `config.json` whose absence means something else than in most families."""
    checked: tuple[Checked, ...] = ()
    """Keys that must have certain values, in addition to `fields.CHECKED` or in its place."""
    reads: tuple[str, ...] = ()
    """Keys that are read by functions of this table and in no entry of it."""
    irrelevant: Mapping[str, str] = field(default_factory=dict)
    """Keys that do not change what a model computes, and why, besides `fields.IRRELEVANT`."""
    hf_constants: Mapping[str, Any] = field(default_factory=dict)
    """Keys written to `config.json` of every natively trained model."""
    extra_links: Callable[[Geometry], list[Link]] = _no_links
    """Links that no row can express."""
    limits_of: Callable[[HfConfig, Geometry], list[str]] = _no_limits
    """What Megatron computes differently, as sentences."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensors that are left out because they repeat another one: patterns of whole names, and the
    name of the other; besides the output projection of models with tied embeddings."""
    carried: tuple[str, ...] = ()
    """Patterns of tensor names that transformers does not read; they travel unchanged, under
    `hugging_face.` in a Megatron checkpoint."""
    untrained: str = ""
    """Why its models do not train here, as a sentence; empty: they do."""
    model_types: tuple[str, ...] = ()
    """Further `model_type`s with the same tensors."""
    computed_by: str = ""
    """`model_type` under which transformers knows the class, if it has none of this name."""
    fused_pattern: re.Pattern[str] = _FUSED
    """Matches names that occur only in the layout of transformers 5."""
    latent: bool = False
    """Whether attention is latent (MLA)."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies if the configuration has none."""

    @property
    def is_moe(self) -> bool:
        """Whether the family's models have experts."""
        return self.pattern is not NO_LAYER

    @property
    def architectures(self) -> tuple[str, ...]:
        """The transformers classes that load it."""
        return (self.architecture,)

    @property
    def checks(self) -> tuple[Checked, ...]:
        """The fields of its configurations that must have certain values."""
        own = {entry.hf for entry in self.checked} | self.irrelevant.keys()
        common = (entry for entry in config_fields.CHECKED if entry.hf not in own)
        return (*common, *self.checked)

    @property
    def used(self) -> frozenset[str]:
        """The fields of its configurations that the table reads."""
        names = {name for entry in self.fields for name in (entry.hf, *entry.other_keys)}
        names |= {*self.pattern.keys, *self.reads, *config_fields.WEIGHT_TYPES}
        return frozenset(names | set(rope.KEYS if self._has_rope else ()))

    @property
    def listed(self) -> frozenset[str]:
        """All fields of its configurations that are used, checked or known to be irrelevant."""
        checked = {entry.hf for entry in self.checks}
        return self.used | checked | self.irrelevant.keys() | config_fields.IRRELEVANT.keys()

    def remarks(self, hf_config: HfConfig) -> tuple[str, ...]:
        """What a person should know about a configuration that is converted, as sentences.

        Raises:
            MappingError: It has fields that only code of the model's own understands.
        """
        names = config_fields.unlisted(hf_config, self.listed)
        return (config_fields.about_unlisted(hf_config, names),) if names else ()

    def unwritten(self, geometry: Geometry) -> tuple[str, ...]:
        """What published folders repeat and an export of these tensors does not, as sentences."""
        if geometry.mtp_copies or not geometry.mtp_layers:
            return ()
        if not self.extra_links(replace(geometry, mtp_copies=True)):
            return ()
        return (
            "published models of this family repeat embedding and output projection in their "
            "layers for multi-token prediction (embed_tokens and shared_head.head); this folder "
            "does not, as the checkpoint has no such copies: a program that reads them there must "
            "take model.embed_tokens and lm_head.",
        )

    def _with_defaults(self, hf_config: HfConfig) -> HfConfig:
        return ChainMap(hf_config, self.defaults)  # type: ignore[arg-type]  # only read

    def geometry(self, hf_config: HfConfig, names: Names = None) -> Geometry:
        """The sizes of a model.

        Args:
            hf_config: Its `config.json`.
            names: Names of its tensors, on either side, if there are any. Published checkpoints
                hold the multi-token prediction layers that their configuration mentions, with
                copies of the embedding; checkpoints that transformers wrote do not.

        Raises:
            MappingError: A key is missing, or sizes do not fit each other.
            ConfigError: A key has an impossible value.
        """
        hf_config = self._with_defaults(hf_config)
        values = self._values(hf_config, names)
        sections = {key: values[key] for key in ("model", "moe")}
        run = from_mapping({**sections, "data": {"vocab_size": values["data"]["vocab_size"]}})
        layout = {**self.layout(hf_config, names), "carried": carried(names, self.carried)}
        return Geometry(family=self.name, architecture=run.architecture, **layout)

    def _values(self, hf_config: HfConfig, names: Names = None) -> dict[str, Any]:
        """Fields of a run in nested sections: model, experts and vocabulary."""
        config_fields.check(hf_config, self.checks)
        values: dict[str, Any] = {"model": {}, "moe": {}, "data": {}}
        for name, value in {**(TOP_K_ROUTER if self.is_moe else {}), **self.constants}.items():
            set_nested(values, name, value)
        for entry in self.fields:
            set_nested(values, entry.ours, entry.value(hf_config))
        if self._has_rope:
            values["model"]["rotary_base"] = round(rope.base(hf_config, self.rope_base))
            for name, value in rope.fields(hf_config, latent=self.latent).items():
                set_nested(values, name, value)
        computed = self.computed_fields(hf_config) | self.fields_from_names(hf_config, names)
        for name, value in computed.items():
            set_nested(values, name, value)
        sensible.check(values, {entry.ours: entry.hf for entry in self.fields}, is_moe=self.is_moe)
        moe_layers = self.pattern.read(hf_config, values["model"]["num_layers"])
        if any(moe_layers):
            uniform = all(moe_layers)
            values["moe"]["layer_frequency"] = 1 if uniform else [int(moe) for moe in moe_layers]
            _finish_moe(values["moe"])
        else:
            values["moe"] = {"num_experts": None}
        return values

    def links_of(self, geometry: Geometry, names: Collection[str]) -> list[Link]:
        """As `links`, in the layout of a Hugging Face folder whose tensors have these names."""
        packed = self.has_packed_names(names)
        return self.links(geometry, fused=self.has_fused_names(names), packed=packed)

    def links(self, geometry: Geometry, *, fused: bool = False, packed: bool = False) -> list[Link]:
        """Every tensor of a model on both sides.

        Args:
            geometry: Its sizes.
            fused: Whether the Hugging Face side has the layout of transformers 5.
            packed: Whether it has 4-bit weights.
        """
        return [
            *expand(self.rows, geometry, fused=fused, packed=packed),
            *self.extra_links(geometry),
            *kept_links(geometry.carried),
        ]

    def has_fused_names(self, names: Collection[str]) -> bool:
        """Whether tensors with these names are in the layout of transformers 5."""
        return any(self.fused_pattern.search(name) is not None for name in names)

    def has_packed_names(self, names: Collection[str]) -> bool:
        """Whether tensors with these names hold 4-bit weights in a form that the family has."""
        ends = tuple(row.packed.names[0].rpartition(".")[2] for row in self.rows if row.packed)
        return bool(ends) and any(name.endswith(ends) for name in names)

    def redundant(self, geometry: Geometry) -> tuple[Redundant, ...]:
        """Tensors that a Hugging Face checkpoint may hold, if they only repeat others."""
        copies = dict(self.copies)
        if not geometry.untied:
            copies["lm_head.weight"] = self._embedding
        found = (Redundant(pattern=name, copy_of=of) for name, of in copies.items())
        return (*rotary_buffers(geometry), *found)

    @property
    def _embedding(self) -> str:
        """Name of the embedding."""
        return next(row.source.names[0] for row in self.rows if row.key == _EMBEDDING)

    def limits(self, hf_config: HfConfig) -> tuple[str, ...]:
        """How Megatron's function differs from this model's, as sentences; weights are exact."""
        geometry = self.geometry(hf_config)
        if self.untrained:
            return (f"{DOES_NOT_TRAIN}: {self.untrained}",)
        hf_config = self._with_defaults(hf_config)
        found = rope.limits(hf_config, latent=self.latent) if self._has_rope else []
        return (
            *found,
            *self._single_expert(hf_config, geometry),
            *self.limits_of(hf_config, geometry),
        )

    def _single_expert(self, hf_config: HfConfig, geometry: Geometry) -> list[str]:
        """Whether the weight of a single expert is a softmax over that choice, which is 1."""
        router = geometry.architecture.moe.router
        if geometry.top_k != 1 or geometry.experts == 1 or router.name != "top_k":
            return []
        name = "moe.router.pre_softmax"
        given = [entry.value(hf_config) for entry in self.fields if entry.ours == name]
        over_all = given[0] if given else self.constants.get(name, TOP_K_ROUTER[name])
        if router.option("score_function") != "softmax" or over_all:
            return []
        return [
            "Megatron weighs the single expert of a token by its probability among all experts, "
            "this model by 1."
        ]

    @property
    def _has_rope(self) -> bool:
        return str(self.constants.get("model.position_embedding", "rope")) == "rope"

    def run_config(self, hf_config: HfConfig, geometry: Geometry | None = None) -> dict[str, Any]:
        """Sections of a `RunConfig` that continues training this model, as `load_config` takes it.

        Args:
            hf_config: Its `config.json`.
            geometry: Its sizes, if they are known from the checkpoint itself.

        Raises:
            MappingError: A key is missing, or has a value that no run can have.
        """
        geometry = geometry or self.geometry(hf_config)
        architecture = geometry.architecture
        sections = to_mapping(RunConfig(model=architecture.model, moe=architecture.moe))
        longest = min(LONGEST_SEQUENCE, sections["model"]["max_position_embeddings"])
        dtype = str(hf_config.get("dtype") or hf_config.get("torch_dtype"))
        is_fp32 = dtype.removeprefix("torch.") == "float32"
        return {
            "model": sections["model"],
            "moe": sections["moe"],
            "data": {"vocab_size": architecture.vocab_size, "sequence_length": longest},
            "training": {**_FIRST_TRAINING, "precision": "fp32" if is_fp32 else "auto"},
        }

    def hf_config(
        self, run_config: RunConfig, base: HfConfig | None = None, names: Names = None
    ) -> dict[str, Any]:
        """The inverse of `run_config`: the `config.json` of a run.

        Args:
            run_config: The run.
            base: The configuration that the run was imported from; it is kept except for what the
                run changed. None for a natively trained model.
            names: Names of the checkpoint's tensors, as for `geometry`.

        Raises:
            MappingError: The family cannot express which layers are MoE layers.
        """
        config = dict(base or {"architectures": [self.architecture], "model_type": self.name})
        if base is None:
            config |= self.hf_constants
        before = None
        if base is not None:
            before = from_mapping(self.run_config(base, self.geometry(base, names)))
        for entry in self.fields:
            value = run_value(run_config, entry.ours)
            if before is None or run_value(before, entry.ours) != value:
                config[entry.key(config)] = entry.write(value, run_config)
        if self._has_rope:
            rope.write(config, run_config.model, None if before is None else before.model)
        if self.is_moe:
            config |= self._layer_keys(run_config, base)
        if base is None and run_config.training.precision in _DTYPES:
            config["dtype"] = _DTYPES[run_config.training.precision]
        return config

    def _layer_keys(self, run_config: RunConfig, base: HfConfig | None) -> dict[str, Any]:
        layers = run_config.model.num_layers
        moe = tuple(number in run_config.moe_layers for number in range(1, layers + 1))
        if base is not None and self.pattern.read(self._with_defaults(base), layers) == moe:
            return {}
        keys = self.pattern.write(moe) if any(moe) else None
        if keys is None:
            raise MappingError(
                f"a {self.name} model cannot have its MoE layers at {list(run_config.moe_layers)}; "
                "export it as another family, such as qwen3_moe."
            )
        return keys

    @property
    def _variable_fields(self) -> frozenset[str]:
        """Dotted names of the model fields that the family's configurations can express."""
        names = {entry.ours for entry in self.fields} | {"moe.layer_frequency"}
        if self._has_rope:
            names |= {"model.rotary_base"}
            names |= {f"model.rope_scaling.{field}" for field in rope.EXPRESSED}
        if "partial_rotary_factor" in self.hf_constants:
            names.add("model.rotary_fraction")
        return frozenset(names)

    def misfits(self, architecture: Architecture) -> list[Difference]:
        """The fields of a model that no member of the family has; `theirs` is the family's value.

        An empty list is no proof of fit: a field that the family has may still not allow the value.
        """
        fixed = self._fixed("model", architecture.model)
        nearest = Architecture(
            model=replace(architecture.model, **fixed),
            moe=self._nearest_experts(architecture.moe),
            vocab_size=architecture.vocab_size,
        )
        return architecture.differences(nearest, architecture.field_names("tensors", "function"))

    def _nearest_experts(self, moe: MoEConfig) -> MoEConfig:
        if moe.num_experts is None:
            return moe
        ours = moe.router.to_plain()
        router = {
            name.removeprefix(_ROUTER): value
            for name, value in {**TOP_K_ROUTER, **self.constants}.items()
            if name.startswith(_ROUTER)
        }
        variable = (
            name.removeprefix(_ROUTER) for name in self._variable_fields if name.startswith(_ROUTER)
        )
        router |= {option: ours.get(option) for option in variable}
        _leave_out_other_options(router)
        fixed = self._fixed("moe", moe)
        fixed["router"] = RouterConfig(name=router.pop("name"), options=router)
        return replace(moe, **fixed)

    def _fixed(self, name: str, ours: Any) -> dict[str, Any]:
        """The fields that are the same in every member of the family, with their values.

        Args:
            name: Dotted name of a section or group.
            ours: The section or group of a model, for the fields of its groups that may vary.
        """
        found: dict[str, Any] = {}
        variable = self._variable_fields
        for each in fields(ours):
            dotted = f"{name}.{each.name}"
            if dotted in variable:
                continue
            value: Any = getattr(ours, each.name)
            if not any(other.startswith(f"{dotted}.") for other in variable):
                found[each.name] = self.constants.get(dotted, each.default)
            elif value is not None and not isinstance(value, RouterConfig):
                found[each.name] = replace(value, **self._fixed(dotted, value))
        return found


def _finish_moe(moe: dict[str, Any]) -> None:
    """Normalize equivalent settings, and set the balancing loss to 0 where none is used."""
    router = moe["router"]
    _leave_out_other_options(router)
    if router["name"] == "top_k" and router["expert_groups"] in {None, 1, router["group_top_k"]}:
        router |= {"expert_groups": None, "group_top_k": None}  # every expert can be chosen
    if moe["top_k"] == 1 and router.get("score_function") == "softmax":
        router["pre_softmax"] = True  # a softmax over one choice would leave the router no gradient
    moe.setdefault("load_balancing", "aux_loss" if moe.get("aux_loss_coef") else "none")
    moe.setdefault("z_loss_coef", 0.0)
    if moe["load_balancing"] == "none":
        moe["aux_loss_coef"] = 0.0


def _leave_out_other_options(router: dict[str, Any]) -> None:
    """Remove the top-k options, which every family starts with, from any other router."""
    if router["name"] != TOP_K_ROUTER[f"{_ROUTER}name"]:
        for name in TOP_K_ROUTER.keys() - {f"{_ROUTER}name"}:
            router.pop(name.removeprefix(_ROUTER), None)
