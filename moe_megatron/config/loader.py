"""Configuration files and packaged presets.

A file holds the differences from its `base`, which is a preset or another file, or from a list of
them, of which later ones win; without a base it holds the differences from the defaults. Among the
presets are the tables of architectures, `architectures/NAME`, which are bases of others. This
module finds the files and names them in errors; `mapping` knows what they may contain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from moe_megatron.config import yaml_text
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.config.conform import show
from moe_megatron.config.mapping import Layer, build, merge, read_layer, to_mapping
from moe_megatron.config.own_code import names_code
from moe_megatron.config.run import RunConfig
from moe_megatron.errors import ConfigError
from moe_megatron.files import namable
from moe_megatron.reading import read_text

_MOST_BYTES = 2**20
_PRESETS = files("moe_megatron.config") / "presets"
_TABLES = "architectures"

CONFIG_FILE = "config.yaml"
"""File name of a complete configuration, in a run folder and next to each of its checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """One file, preset or mapping, with its name for messages."""

    label: str
    identity: str
    content: str | Mapping[str, Any]
    """YAML text, or what it would hold."""
    folder: Path | None
    preset: str | None

    def values(self) -> dict[Any, Any]:
        """The sections it gives, and its bases."""
        if isinstance(self.content, str):
            return yaml_text.parse(self.content)
        return dict(self.content)


def list_presets() -> tuple[str, ...]:
    """Names of the packaged presets, sorted."""
    return _names_in("")


def list_tables() -> tuple[str, ...]:
    """Names of the tables of architectures, sorted: `architectures/NAME`, each a preset, too."""
    return tuple(f"{_TABLES}/{name}" for name in _names_in(_TABLES))


def _names_in(folder: str) -> tuple[str, ...]:
    names = (entry.name for entry in (_PRESETS / folder).iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_config(source: str | Path | Mapping[str, Any]) -> RunConfig:
    """Read a configuration.

    Args:
        source: Name of a preset, or path of a YAML file. To read a file that has the name of a
            preset, give its path with a folder or a suffix. Or a mapping of what a file would hold.

    Returns:
        The configuration. Each section is checked by itself; call `validate` to check the whole,
        after any overrides.

    Raises:
        ConfigError: If it cannot be read; the message names the file, the key and what to do.
    """
    if isinstance(source, Mapping):
        origin = _Source(label="the table", identity="", content=source, folder=Path(), preset=None)
    else:
        origin = _find(str(source), folder=Path(), asked_by="")
    layer = _read_with_bases(origin, chain=())
    try:
        return build(layer)
    except ConfigError as error:
        raise _in_file(error, origin) from error


def dump_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML text; `load_config` reads it back to an equal one."""
    return yaml_text.dump(to_mapping(config))


def parse_override(text: str) -> tuple[str, object]:
    """Read "moe.top_k=4" as a name and a value for `apply_overrides`; the value is YAML.

    Raises:
        ConfigError: If there is no "=", or the value is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(
            f"an override needs the form section.field=value, such as moe.top_k=4, not '{text}'."
        )
    try:
        return name.strip(), yaml_text.parse(f"value: {value}").get("value")
    except ConfigError as error:
        raise ConfigError(f"override '{text}': {error}") from error


def _read_with_bases(source: _Source, chain: tuple[_Source, ...]) -> Layer:
    """The values of a source merged over those of its bases."""
    if source.identity in [above.identity for above in chain]:
        circle = " -> ".join(link.label for link in (*chain, source))
        raise ConfigError(f"the bases form a circle: {circle}; remove the 'base' of one.")
    try:
        values = source.values()
        bases = _bases(values.pop("base", None))
        layer = read_layer(values)
        if source.folder is not None and Path(source.label).name == CONFIG_FILE:
            _refuse_code(layer)
    except ConfigError as error:
        raise _in_file(error, source) from error
    if source.preset is not None:
        layer["preset"] = source.preset
    merged: Layer = {}
    for base in bases:
        below = _find(base, folder=source.folder, asked_by=f"{source.label}: base ")
        merged = merge(merged, _read_with_bases(below, (*chain, source)))
    return merge(merged, layer)


def _bases(given: object) -> list[str]:
    """The bases of a file, in the order in which they are laid over each other."""
    names: list[str] = []
    for name in given if isinstance(given, list) else [] if given is None else [given]:
        if not isinstance(name, str):
            raise ConfigError(f"base needs the name of a preset or file, not {show(name)}.")
        names.append(name)
    return names


def _refuse_code(layer: Layer) -> None:
    """Reject code in a file of the name that runs give theirs: they note it, with its hash.

    Whoever loads a checkpoint with the configuration beside it has not named code in it.
    """
    for field, value in layer.get("moe", {}).items():
        part = value if isinstance(value, dict) else {}
        if names_code(part.get("name")) and part.get("sha256") is None:
            raise ConfigError(
                f"moe.{field} names the code '{part['name']}', which a {CONFIG_FILE}, as runs and "
                f"checkpoints hold it, cannot: give --{field} {part['name']}, if you trust that "
                "file, or name it in a YAML file of another name."
            )


def _in_file(error: ConfigError, source: _Source) -> ConfigError:
    """The same error, of the same type, with the file name in front."""
    return type(error)(f"{source.label}: {error}")


def _find(name: str, *, folder: Path | None, asked_by: str) -> _Source:
    """Open a preset, or a file relative to `folder`; without a folder, presets only."""
    presets = list_presets()
    if name in presets or name in list_tables():
        text = (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
        label = f"preset {name}"
        return _Source(label=label, identity=label, content=text, folder=None, preset=name)
    path = None if folder is None else folder / namable(Path(name))
    if path is None or not name or not path.exists():
        hint = nearest(Path(name).stem, presets)
        raise ConfigError(
            f"{asked_by}'{name}' is neither a file nor a preset.{hint} "
            f"Presets are: {join_words(presets, 'and')}."
        )
    try:
        text = read_text(path, _MOST_BYTES)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{asked_by}'{path}' is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"{asked_by}'{path}' cannot be read: {error.strerror}.") from error
    # Resolved, so that a circle is recognised even if it reaches one file by two paths.
    identity = str(path.resolve())
    return _Source(
        label=str(path), identity=identity, content=text, folder=path.parent, preset=None
    )
