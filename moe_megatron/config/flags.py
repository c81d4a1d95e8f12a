"""The translation between configuration fields and Megatron flags, in both directions.

`to_flags` writes a configuration as Megatron's command line; `split_flags` reads a command line
back into fields, so that a flag given together with a file overrides its field and every other flag
is kept in `RunConfig.megatron`. Fields declare their flags themselves (`fields.setting`); this
module adds the few flags that do not correspond to exactly one field. Which flags exist, and what
Megatron does with them, is known to `moe_megatron.mcore`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_megatron.config.fields import (
    NOT_OURS,
    Flag,
    Setting,
    Values,
    float_or_text,
    int_or_text,
    settings_of,
)
from moe_megatron.config.run import SECTIONS, MegatronValue, RunConfig
from moe_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class FlagRule:
    """One Megatron flag and what it means for a configuration."""

    flag: str
    """Megatron's name, without the leading dashes."""
    field: str
    """Dotted name of the field that the flag sets, such as "moe.top_k"."""
    write: Callable[[RunConfig], Values | None]
    """The values after the flag; None leaves the flag out."""
    read: Callable[[Values], dict[str, Any] | None]
    """Overrides, by dotted name, from the values after the flag; None if the field cannot express
    them, and the flag is kept in `RunConfig.megatron`."""
    takes_value: bool = True
    """Whether the flag takes exactly one value, or none."""
    implies: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Overrides, by dotted name, that apply unless another flag sets the same fields."""


def _rules_of_fields() -> Iterator[FlagRule]:
    for section, config_type in SECTIONS.items():
        for setting in settings_of(config_type):
            for flag in setting.flags:
                yield _rule(section, setting, flag)


def _rule(section: str, setting: Setting, flag: Flag) -> FlagRule:
    name = ".".join((section, *setting.path))
    group = name.rpartition(".")[0]

    def write(config: RunConfig) -> Values | None:
        part = getattr(config, section)
        value = setting.value(part)
        if value is None and len(setting.path) > 1 and setting.group(part) is None:
            return None
        return flag.write(value) if flag.when(part) else None

    def read(values: Values) -> dict[str, Any] | None:
        value = flag.read(values)
        return None if value is NOT_OURS else {name: value}

    return FlagRule(
        flag=flag.name,
        field=name,
        write=write,
        read=read,
        takes_value=flag.takes_value,
        implies={f"{group}.{other}": value for other, value in flag.implies.items()},
    )


def _router_option(name: str, flag: str, read: Callable[[Values], Any] | None = None) -> FlagRule:
    """An option of `top_k`, Megatron's own router."""
    dotted = f"moe.router.{name}"

    def write(config: RunConfig) -> Values | None:
        value = config.moe.router.option(name)
        if value is None or value is False:
            return None
        return () if value is True else (str(value),)

    return FlagRule(
        flag=flag,
        field=dotted,
        write=write,
        read=lambda values: {dotted: read(values) if read else True},
        takes_value=read is not None,
    )


_ROUTER_OPTIONS = (
    _router_option("score_function", "moe-router-score-function", lambda values: values[0]),
    _router_option("pre_softmax", "moe-router-pre-softmax"),
    _router_option("expert_groups", "moe-router-num-groups", int_or_text),
    _router_option("group_top_k", "moe-router-group-topk", int_or_text),
    _router_option("scaling", "moe-router-topk-scaling-factor", float_or_text),
)

_ROPE, _SCALING = "model.position_embedding", "model.rope_scaling"


def _read_position_type(values: Values) -> dict[str, Any]:
    if values[0] == "yarn":
        return {_ROPE: "rope", f"{_SCALING}.kind": "yarn"}
    return {_ROPE: values[0]}


def _write_position_type(config: RunConfig) -> Values:
    model = config.model
    yarn = model.rope_scaling is not None and model.rope_scaling.kind == "yarn"
    return ("yarn",) if yarn and model.latent_attention is None else (model.position_embedding,)


def _write_rope_type(config: RunConfig) -> Values | None:
    """Latent attention takes its kind of positions from a flag of its own."""
    model = config.model
    if model.latent_attention is None:
        return None
    yarn = model.rope_scaling is not None and model.rope_scaling.kind == "yarn"
    return ("yarn",) if yarn else ("rope",)


_POSITIONS = (
    FlagRule(
        flag="position-embedding-type",
        field=_ROPE,
        write=_write_position_type,
        read=_read_position_type,
    ),
    FlagRule(
        flag="rope-type",
        field=_SCALING,
        write=_write_rope_type,
        read=lambda values: (
            {f"{_SCALING}.kind": "yarn"} if values[0] == "yarn" else {_SCALING: None}
        ),
    ),
)

RULES: tuple[FlagRule, ...] = (*_rules_of_fields(), *_ROUTER_OPTIONS, *_POSITIONS)
"""Every field that a flag can set. The engine resolves the rest (paths, precision)."""

_BY_FLAG = {rule.flag: rule for rule in RULES}

_PRECISION_FLAGS = {"bf16": "bf16", "fp8-format": "fp8"}


def to_flags(config: RunConfig) -> list[str]:
    """Write the fields of a configuration, and its `megatron` flags, as command line words.

    Raises:
        ConfigError: `megatron` holds a flag that belongs to a field.
    """
    words: list[str] = []
    for rule in RULES:
        if rule.field.startswith("moe.") and config.moe.num_experts is None:
            continue
        values = rule.write(config)
        if values is not None:
            words += [f"--{rule.flag}", *values]
    for flag, value in config.megatron.items():
        if flag in _BY_FLAG:
            raise ConfigError(
                f"megatron.{flag} is the field {_BY_FLAG[flag].field}; set that one instead."
            )
        if value is not False:
            words += [f"--{flag}", *_words(value)]
    return words


def _words(value: MegatronValue) -> Iterable[str]:
    if value is True or value is None:
        return ()
    return map(str, value) if isinstance(value, tuple) else (str(value),)


def split_flags(words: Sequence[str]) -> dict[str, Any]:
    """Read command line words into overrides for `apply_overrides`.

    Args:
        words: Flags with their values, as in "--num-layers 6 --bf16" or "--num-layers=6".

    Returns:
        Values by dotted name; a flag that belongs to no field is named "megatron.<flag>".

    Raises:
        ConfigError: A word comes before any flag, or a flag has too few or too many values.
    """
    overrides: dict[str, Any] = {}
    implied: dict[str, Any] = {}
    for flag, values in _with_values(words):
        if flag in _PRECISION_FLAGS:
            overrides.setdefault("training.precision", _PRECISION_FLAGS[flag])
            if flag == "fp8-format":
                overrides["training.precision"] = "fp8"
                overrides["megatron.fp8-format"] = values[0] if values else "hybrid"
            continue
        if flag == "data-path":
            overrides.update(_blend(values))
            continue
        rule = _BY_FLAG.get(flag)
        if rule is None:
            overrides[f"megatron.{flag}"] = _plain(values)
            continue
        _check_number_of_values(rule, values)
        read = rule.read(values)
        overrides.update({f"megatron.{flag}": _plain(values)} if read is None else read)
        implied.update({} if read is None else rule.implies)
    return {**implied, **overrides}


def _check_number_of_values(rule: FlagRule, values: Values) -> None:
    if rule.takes_value and not values:
        raise ConfigError(
            f"--{rule.flag} needs a value, as in '--{rule.flag} VALUE'; none was given."
        )
    number, allowed = (1, "one value") if rule.takes_value else (0, "no value")
    if len(values) > number:
        raise ConfigError(
            f"--{rule.flag} takes {allowed}, but is followed by '{' '.join(values)}'; leave out "
            f"'{' '.join(values[number:])}', or set {rule.field} in the configuration."
        )


def _blend(values: Values) -> dict[str, Any]:
    """`--data-path` takes paths, or weights alternating with paths."""
    weights = values[::2]
    if len(values) > 1 and len(values) % 2 == 0 and all(map(_is_number, weights)):
        return {"data.paths": values[1::2], "data.weights": weights}
    return {"data.paths": values, "data.weights": None}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(values: Values) -> MegatronValue:
    if not values:
        return True
    return values[0] if len(values) == 1 else values


def _with_values(words: Sequence[str]) -> list[tuple[str, Values]]:
    found: list[tuple[str, Values]] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            found.append((flag, (value,) if equals else ()))
        elif found:
            flag, values = found[-1]
            found[-1] = (flag, (*values, word))
        else:
            raise ConfigError(
                f"'{word}' is not a flag; give flags as in '--num-layers 6', after the "
                "configuration."
            )
    return found
