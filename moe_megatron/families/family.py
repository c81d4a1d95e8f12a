"""A family: its table of rows and its configuration fields, and what both are read for."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.mapping import from_mapping
from moe_megatron.errors import MappingError
from moe_megatron.families import rope
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.hf_config import HfConfig
from moe_megatron.families.links import Link
from moe_megatron.families.settings import (
    EVERY_LAYER,
    NO_LAYER,
    Field,
    Pattern,
    of_run,
    put,
)
from moe_megatron.families.table import Row, expand

LONGEST_SEQUENCE = 4096
"""Tokens of a training sequence that an import proposes at most."""
Names = Collection[str] | None
_MOST = {"layers": 4096, "experts": 65536, "mtp_layers": 64}
_FUSED = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
_DTYPES = {precision: dtype for dtype, precision in _PRECISIONS.items()}
_CONSTANTS = {
    "model.norm": "RMSNorm",
    "model.activation": "swiglu",
    "model.position_embedding": "rope",
    "model.qk_norm": False,
    "model.add_bias": False,
    "model.attention_output_bias": False,
    "model.lm_head_bias": False,
    "model.embedding_multiplier": 1.0,
    "model.attention_multiplier": None,
    "model.residual_multiplier": 1.0,
    "model.logits_divisor": 1.0,
}
_MOE_CONSTANTS = {
    "moe.router_algorithm": "top_k",
    "moe.router_score_function": "softmax",
    "moe.pre_softmax": False,
    "moe.expert_bias": False,
    "moe.num_groups": None,
    "moe.group_top_k": None,
    "moe.shared_expert_hidden_size": None,
    "moe.top_k_scaling": None,
}


def sigmoid_limits(config: HfConfig, geometry: Geometry) -> list[str]:
    """For `limits_of`: Megatron brings the weights of the chosen experts to a sum of 1."""
    if config.get("norm_topk_prob", True) == (geometry.top_k > 1):
        return []
    return ["Megatron normalizes the weights of several chosen experts, and of one never."]


def _no_links(geometry: Geometry) -> list[Link]:
    return []


def _nothing(config: HfConfig) -> dict[str, Any]:
    return {}


def _no_limits(config: HfConfig, geometry: Geometry) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One architecture of Hugging Face and its place in Megatron."""

    name: str
    """`model_type` of its configurations."""
    architecture: str
    """Class of transformers that loads it."""
    rows: tuple[Row, ...]
    fields: tuple[Field, ...]
    sizes: Callable[[HfConfig, Names], dict[str, Any]] = lambda config, names: {}
    """Fields of `Geometry` that no key says by itself, of a configuration and names of tensors."""
    pattern: Pattern = EVERY_LAYER
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Dotted fields of a run that are the same for every member."""
    hf_constants: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `config.json` that every natively trained model gets."""
    flags: Callable[[HfConfig], dict[str, Any]] = _nothing
    """Megatron flags for what no field of ours says."""
    extra: Callable[[Geometry], list[Link]] = _no_links
    """Links that no row can say."""
    limits_of: Callable[[HfConfig, Geometry], list[str]] = _no_limits
    """What Megatron computes differently, as sentences."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors to leave out, besides those that every family leaves out."""
    model_types: tuple[str, ...] = ()
    """Further `model_type`s with the same tensors."""
    fused_pattern: re.Pattern[str] = _FUSED
    """Names that only the layout of transformers 5 has."""
    latent: bool = False
    """Latent attention (MLA)."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies where the configuration has none."""

    @property
    def is_moe(self) -> bool:
        """Whether its models have experts."""
        return self.pattern is not NO_LAYER

    @property
    def architectures(self) -> tuple[str, ...]:
        """Classes of transformers that load it."""
        return (self.architecture,)

    def geometry(self, hf_config: HfConfig, names: Names = None) -> Geometry:
        """The sizes of a model.

        Args:
            hf_config: Its `config.json`.
            names: Names of its tensors, on either side, where there are any: published checkpoints
                hold the layers of multi-token prediction that their configuration speaks of, and
                copies of the embedding in them; those that transformers wrote do not.

        Raises:
            MappingError: A key is missing, or sizes do not fit each other.
        """
        sizes = {f.size: f.value(hf_config) for f in self.fields if f.size}
        kinds = {key: type(value) for key, value in _defaults().items()}
        sizes = {key: kinds.get(key, int)(value) for key, value in sizes.items()}
        if self.latent:
            sizes |= {"groups": sizes["heads"], "head_dim": sizes["v_dim"]}
        sizes |= self.sizes(hf_config, names)
        _check_sizes(sizes, is_moe=self.is_moe)
        moe_layers = self.pattern.read(hf_config, sizes["layers"])
        return Geometry(family=self.name, moe_layers=moe_layers, **sizes)

    def links(self, geometry: Geometry, *, fused: bool = False) -> list[Link]:
        """Every tensor of a model on both sides.

        Args:
            geometry: Its sizes.
            fused: Whether the Hugging Face side has the layout of transformers 5.
        """
        return [*expand(self.rows, geometry, fused=fused), *self.extra(geometry)]

    def fused_names(self, names: Collection[str]) -> bool:
        """Whether tensors of these names are in the layout of transformers 5."""
        return any(self.fused_pattern.search(name) is not None for name in names)

    def ignorable(self, geometry: Geometry) -> tuple[str, ...]:
        """Patterns of whole names that a Hugging Face checkpoint may hold besides, to no effect."""
        tied = ("lm_head.weight",) if geometry.tied else ()
        return (r".*rotary_emb\.inv_freq", *tied, *self.ignored)

    def limits(self, hf_config: HfConfig) -> tuple[str, ...]:
        """What Megatron computes differently from this model, as sentences; weights are exact."""
        geometry = self.geometry(hf_config)
        found = rope.limits(hf_config, latent=self.latent) if self._has_rope else []
        return (*found, *self.limits_of(hf_config, geometry))

    @property
    def _has_rope(self) -> bool:
        return str(self.constants.get("model.position_embedding", "rope")) == "rope"

    def run_config(self, hf_config: HfConfig, geometry: Geometry | None = None) -> dict[str, Any]:
        """Sections of a `RunConfig`, as `load_config` takes them, in which this model trains on.

        Args:
            hf_config: Its `config.json`.
            geometry: Its sizes, where they are known from the checkpoint itself.

        Raises:
            MappingError: A key is missing, or has a value that no run can have.
        """
        geometry = geometry or self.geometry(hf_config)
        values: dict[str, Any] = {"model": {}, "moe": {}, "data": {}, "training": {}}
        megatron = dict(self.flags(hf_config))
        defaults = _CONSTANTS | (_MOE_CONSTANTS if self.is_moe else {})
        for name, value in {**defaults, **self.constants}.items():
            put(values, name, value)
        for entry in self.fields:
            if entry.ours:
                put(values, entry.ours, entry.value(hf_config))
        if self._has_rope:
            values["model"]["rotary_base"] = round(rope.base(hf_config, self.rope_base))
            kind = rope.embedding(hf_config, latent=self.latent)
            values["model"]["position_embedding"] = kind
            megatron |= rope.flags(hf_config, latent=self.latent)
        if self.is_moe:
            pattern = tuple(int(moe) for moe in geometry.moe_layers)
            values["moe"] |= {"layer_frequency": 1 if geometry.homogeneous else list(pattern)}
            _finish_moe(values["moe"])
        else:
            values["moe"]["num_experts"] = None
        megatron |= values.pop("megatron", {})
        megatron["mtp-num-layers"] = geometry.mtp_layers
        values["megatron"] = {k: v for k, v in megatron.items() if v is not False and v != 0}
        longest = min(LONGEST_SEQUENCE, values["model"]["max_position_embeddings"])
        values["data"]["sequence_length"] = longest
        dtype = str(hf_config.get("dtype") or hf_config.get("torch_dtype")).removeprefix("torch.")
        values["training"]["precision"] = _PRECISIONS.get(dtype, "auto")
        return values

    def hf_config(
        self, run_config: RunConfig, base: HfConfig | None = None, names: Names = None
    ) -> dict[str, Any]:
        """The way back: the `config.json` of a run.

        Args:
            run_config: The run.
            base: The configuration that the run was imported from: it stays as it is but for what
                the run changed. None for a natively trained model.
            names: Names of the tensors of the checkpoint, as `geometry` takes them.

        Raises:
            MappingError: The family has no way to say which layers are MoE layers.
        """
        told = dict(base or {"architectures": [self.architecture], "model_type": self.name})
        if base is None:
            told |= self.hf_constants
        before = None
        if base is not None:
            before = from_mapping(self.run_config(base, self.geometry(base, names)))
        for entry in self.fields:
            if not entry.ours:
                continue
            value = of_run(run_config, entry.ours)
            if isinstance(entry.default, bool):
                value = bool(value)  # a flag that a run has not
            if before is None or of_run(before, entry.ours) != value:
                told[entry.key(told)] = entry.write(value, run_config)
        self._tell_rope(told, run_config, base)
        if self.is_moe:
            told |= self._layer_keys(run_config, base)
        if base is None and run_config.training.precision in _DTYPES:
            told["dtype"] = _DTYPES[run_config.training.precision]
        return told

    def _layer_keys(self, run_config: RunConfig, base: HfConfig | None) -> dict[str, Any]:
        layers = run_config.model.num_layers
        moe = tuple(number in run_config.moe_layers for number in range(1, layers + 1))
        if base is not None and self.pattern.read(base, layers) == moe:
            return {}
        keys = self.pattern.write(moe) if any(moe) else None
        if keys is None:
            raise MappingError(
                f"a {self.name} model cannot have its MoE layers at {list(run_config.moe_layers)}; "
                "export it as another family, such as qwen3_moe."
            )
        return keys

    def _tell_rope(
        self, told: dict[str, Any], run_config: RunConfig, base: HfConfig | None
    ) -> None:
        theta = run_config.model.rotary_base
        if not self._has_rope or (base and round(rope.base(base, self.rope_base)) == theta):
            return
        if "rope_parameters" in told:
            told["rope_parameters"] = {**(told["rope_parameters"] or {}), "rope_theta": theta}
        else:
            told["rope_theta"] = theta


def _finish_moe(moe: dict[str, Any]) -> None:
    """Null where a run says nothing, and no loss where nothing balances by one."""
    for key in ("shared_expert_hidden_size", "input_jitter"):
        moe[key] = moe.get(key) or None
    if moe.get("num_groups") in {None, 1, moe.get("group_top_k")}:
        moe |= {"num_groups": None, "group_top_k": None}  # every expert can be chosen
    if moe["top_k"] == 1 and moe["router_score_function"] == "softmax":
        moe["pre_softmax"] = True  # a softmax over one choice would leave the router no gradient
    if moe.get("top_k_scaling") == 1.0:
        moe["top_k_scaling"] = None
    moe.setdefault("load_balancing", "aux_loss" if moe.get("aux_loss_coef") else "none")
    moe.setdefault("z_loss_coef", 0.0)
    if moe["load_balancing"] == "none":
        moe["aux_loss_coef"] = 0.0


def _defaults() -> dict[str, Any]:
    fields = Geometry.__dataclass_fields__
    return {name: f.default for name, f in fields.items() if isinstance(f.default, bool)}


def _check_sizes(sizes: Mapping[str, Any], *, is_moe: bool) -> None:
    needed = ["layers", "hidden", "heads", "groups", "head_dim", "vocab", "ffn"]
    needed += ["experts", "expert_width", "top_k"] if is_moe else []
    for name in needed:
        if sizes[name] < 1:
            raise MappingError(f"config.json gives {sizes[name]} {name}; at least 1 is needed.")
    for name, most in _MOST.items():
        if sizes.get(name, 0) > most:
            raise MappingError(f"config.json gives {sizes[name]} {name}; {most} are allowed.")
    if sizes["heads"] % sizes["groups"]:
        raise MappingError(
            f"config.json has {sizes['heads']} query heads and {sizes['groups']} key/value heads; "
            "the second number must divide the first."
        )
    if is_moe and sizes["top_k"] > sizes["experts"]:
        raise MappingError(
            f"config.json sends a token to {sizes['top_k']} of {sizes['experts']} experts; it "
            "cannot be more than there are."
        )
