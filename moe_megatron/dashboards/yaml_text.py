"""Readable YAML: keys in order, long texts as blocks, and a first line that says who wrote it."""

from typing import Any

import yaml

_HEADER = "# Written by `moe-megatron grafana build`; edit moe_megatron/dashboards instead.\n"


class _Dumper(yaml.SafeDumper):
    """Writes multi-line texts as blocks, and never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    style = "|" if "\n" in data else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(data: Any) -> str:
    """A YAML document with the header."""
    return _HEADER + yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100)
