"""YAML text to plain mappings, with errors that give the line number.

It uses PyYAML's safe loader only, and does not know what the keys mean.
"""

from collections.abc import Iterator
from typing import Any

import yaml

from moe_megatron.errors import ConfigError

_MOST_VALUES, _MOST_CHARACTERS, _MOST_DIGITS = 100_000, 100_000, 1000
_INT = "tag:yaml.org,2002:int"


def parse(text: str) -> dict[Any, Any]:
    """Read a YAML document that is a mapping; an empty document is an empty mapping.

    Raises:
        ConfigError: If the text is not YAML or not a mapping, or repeats a key.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_size(root, set(), {})
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"line {line} is not valid YAML: {error.problem}.") from error
    except RecursionError:
        raise ConfigError(
            "the text is nested too deeply; a configuration has two levels."
        ) from None
    # Errors without a position: characters that YAML forbids, and impossible dates.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"the text is not valid YAML: {str(error).splitlines()[0]}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("the file needs a mapping of sections, such as 'model:', at its top.")
    for key, line in _repeated_keys(root):
        raise ConfigError(f"line {line} repeats the key '{key}'; keep one.")
    return values


def dump(values: dict[str, Any]) -> str:
    """Write plain values as YAML text, in their order."""
    return yaml.safe_dump(values, sort_keys=False)


def _check_size(node: yaml.Node | None, above: set[int], sizes: dict[int, int]) -> int:
    """Number of values of a node, with what its aliases stand for.

    A few lines in which each repeats the one before twice are a thousand million values, and an
    alias of what it is in never ends.
    """
    if not isinstance(node, yaml.CollectionNode):
        most = _MOST_DIGITS if node is not None and node.tag == _INT else _MOST_CHARACTERS
        if node is not None and len(node.value) > most:
            raise _too_large(node, f"a value of {len(node.value):,} characters")
        return 1
    if id(node) in above:
        raise _too_large(node, "a value that holds itself")
    if id(node) not in sizes:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        inside = above | {id(node)}
        sizes[id(node)] = 1 + sum(_check_size(part, inside, sizes) for part in parts)
        if sizes[id(node)] > _MOST_VALUES:
            raise _too_large(node, f"{sizes[id(node)]:,} values")
    return sizes[id(node)]


def _too_large(node: yaml.Node, what: str) -> ConfigError:
    return ConfigError(
        f"line {node.start_mark.line + 1} holds {what}, which no configuration needs; shorten it."
    )


def _repeated_keys(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Keys that the top mapping or a section repeats, with the line of the repetition.

    PyYAML silently keeps the last one, so half a section could vanish.
    """
    assert isinstance(root, yaml.MappingNode), "only a mapping node becomes a dict"
    sections = [value for _, value in root.value if isinstance(value, yaml.MappingNode)]
    for mapping in (root, *sections):
        seen: set[str] = set()
        for key, _ in mapping.value:
            name = str(key.value)
            if name in seen:
                yield name, key.start_mark.line + 1
            seen.add(name)
