"""The router of a command line: `--router NAME`, or a function in a file of the user's own.

Here is where a person has named the file: by `--router`, by `--set moe.router=...`, or in the YAML
file that `--config` gives. The configuration then holds its name and hash. A configuration that
holds them already was saved by a run, and asks for the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_megatron.config import RouterConfig, RunConfig, apply_overrides, parse_override
from moe_megatron.config.own_code import names_code, not_given
from moe_megatron.errors import ConfigError

_FIELD = RouterConfig.FIELD
_NAME = f"{_FIELD}.name"


def router_overrides(router: str | None, arguments: Sequence[str]) -> dict[str, Any]:
    """What `--router` and `--router-arg` change, by dotted name.

    Raises:
        ConfigError: An argument has another form, or is given twice.
    """
    found: dict[str, Any] = {} if router is None else {_NAME: router}
    for text in arguments:
        option, equals, _ = text.partition("=")
        if not equals or not option.strip().isidentifier():
            raise ConfigError(
                f"--router-arg needs the form option=value, such as sharpness=2.0, not '{text}'."
            )
        name, value = parse_override(text)
        if f"{_FIELD}.{name}" in found:
            raise ConfigError(f"--router-arg gives '{name}' twice; keep one.")
        found[f"{_FIELD}.{name}"] = value
    return found


def with_own_router(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Apply what the command line says, and load the file of a router that it or YAML names.

    Args:
        config: What `--config` gives.
        overrides: Values by dotted name, as for `apply_overrides`.

    Raises:
        ConfigError: A value is wrong; the file is missing, is no router, has changed, or was not
            given.
    """
    named = overrides.get(_NAME)
    if names_code(named):
        return _given(config, {**overrides, _NAME: _label(str(named))}, str(named))
    config = apply_overrides(config, overrides)
    router = config.moe.router
    if not names_code(router.name):
        return config
    if router.sha256 is not None:
        raise not_given(router.name, router.sha256, f"--router PATH/{router.name}")
    return _tried(config, _loaded(router))


def router_words(router: RouterConfig) -> list[str]:
    """The words with which a batch job loads the file of a router; none for one of this package."""
    if router.sha256 is None:
        return []
    from moe_megatron.routing import words_of

    return words_of(router)


def _given(config: RunConfig, overrides: Mapping[str, Any], spec: str) -> RunConfig:
    """The run with a router whose file `--router` names."""
    noted = config.moe.router
    if names_code(noted.name) and noted.sha256 is None:  # YAML names it, too: it keeps the options
        noted = replace(noted, name=_label(noted.name))
        config = replace(config, moe=replace(config.moe, router=noted))
    config = apply_overrides(config, overrides)
    wanted = config.moe.router
    given = _loaded(RouterConfig(name=spec, replaces=wanted.replaces))
    from moe_megatron.routing import given_again

    return _tried(config, given_again(given, wanted))


def _loaded(router: RouterConfig) -> RouterConfig:
    from moe_megatron.routing import own_router  # loads torch, which --help can do without

    return own_router(router)


def _tried(config: RunConfig, router: RouterConfig) -> RunConfig:
    """The run with a router that has routed some random tokens, with every option of it."""
    from moe_megatron.routing import resolve, try_out

    moe = resolve(replace(config.moe, router=router))
    try_out(moe, config.model.hidden_size)
    return replace(config, moe=moe)


def _label(spec: str) -> str:
    """A file's name without folders, as configurations hold it."""
    place, colon, name = spec.rpartition(":")
    return f"{Path(place).name}{colon}{name}"
