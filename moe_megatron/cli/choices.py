"""Router and experts of a command line: a name, or code in a file of the user's own.

Here is where a person has named the file: by `--router` or `--expert`, by `--set moe.router=...`,
or in the YAML file that `--config` gives. The configuration then holds its name and hash. A
configuration that holds them already was saved by a run, and asks for the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_megatron.config import (
    ExpertConfig,
    MoEConfig,
    RouterConfig,
    RunConfig,
    apply_overrides,
    parse_override,
)
from moe_megatron.config.named import Named
from moe_megatron.config.own_code import names_code, not_given
from moe_megatron.errors import ConfigError

_KINDS: dict[str, type[Named]] = {"router": RouterConfig, "expert": ExpertConfig}
"""By the option, which is also the name of the field of `moe`."""


def choice_overrides(option: str, name: str | None, arguments: Sequence[str]) -> dict[str, Any]:
    """What an option such as `--router`, and `--router-arg` with it, change, by dotted name.

    Args:
        option: Its name, "router" or "expert".
        name: What it says; None where it is not given.
        arguments: Options of what is chosen, as option=value.

    Raises:
        ConfigError: An argument has another form, or is given twice.
    """
    field = _KINDS[option].FIELD
    found: dict[str, Any] = {} if name is None else {f"{field}.name": name}
    for text in arguments:
        key, equals, _ = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(
                f"--{option}-arg needs the form option=value, such as sharpness=2.0, not '{text}'."
            )
        key, value = parse_override(text)
        if f"{field}.{key}" in found:
            raise ConfigError(f"--{option}-arg gives '{key}' twice; keep one.")
        found[f"{field}.{key}"] = value
    return found


def with_own_code(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Apply what the command line says, and load the files of code that it or YAML names.

    Args:
        config: What `--config` gives.
        overrides: Values by dotted name, as for `apply_overrides`.

    Raises:
        ConfigError: A value is wrong; a file is missing, holds something else, has changed, or was
            not given.
    """
    overrides, given = dict(overrides), {}
    for option, kind in _KINDS.items():
        named = overrides.get(f"{kind.FIELD}.name")
        if not names_code(named):
            continue
        given[option] = str(named)
        overrides[f"{kind.FIELD}.name"] = _label(str(named))
        noted = getattr(config.moe, option)
        if names_code(noted.name) and noted.sha256 is None:
            # YAML names it, too: it keeps the options.
            config = _with(config, {option: replace(noted, name=_label(noted.name))})
    config = apply_overrides(config, overrides)
    loaded = {}
    for option in _KINDS:
        choice = getattr(config.moe, option)
        if option in given:
            loaded[option] = _given_again(option, given[option], choice)
        elif names_code(choice.name):
            if choice.sha256 is not None:
                how = f"--{option} PATH/{choice.name}"
                raise not_given(choice.name, choice.sha256, how, option)
            loaded[option] = _own(option, choice)
    return _tried(_with(config, loaded)) if loaded else config


def own_code_words(moe: MoEConfig) -> list[str]:
    """The words with which a batch job loads the user's own files; none without any."""
    if moe.router.sha256 is None and moe.expert.sha256 is None:
        return []
    from moe_megatron.experts import own_file_words  # loads torch, which --help can do without

    return own_file_words(moe)


def _own(option: str, choice: Any) -> Named:
    """The choice with its file loaded."""
    from moe_megatron.experts import own_expert
    from moe_megatron.routing import own_router

    return own_router(choice) if option == "router" else own_expert(choice)


def _given_again(option: str, spec: str, wanted: Any) -> Named:
    """What the run wants, from the file that the option names."""
    from moe_megatron.experts import expert_given_again
    from moe_megatron.routing import given_again

    given: Any = _KINDS[option](name=spec, replaces=wanted.replaces)
    return (given_again if option == "router" else expert_given_again)(given, wanted)


def _tried(config: RunConfig) -> RunConfig:
    """The run with code that has computed something random, and with every option of it."""
    from moe_megatron import experts, routing

    config = replace(config, moe=experts.resolve(config.moe))
    routing.try_router(config.moe, config.model.hidden_size)
    inner = config.architecture.expert_hidden_size
    experts.try_expert(config.moe, config.model.hidden_size, inner)
    return config


def _with(config: RunConfig, choices: Mapping[str, Named]) -> RunConfig:
    moe: Any = replace(config.moe, **choices)  # type: ignore[arg-type]  # by their options
    return replace(config, moe=moe)


def _label(spec: str) -> str:
    """A file's name without folders, as configurations hold it."""
    place, colon, name = spec.rpartition(":")
    return f"{Path(place).name}{colon}{name}"
