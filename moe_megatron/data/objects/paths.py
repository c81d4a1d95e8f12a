"""Strings and paths: a file, a folder, a pattern, a prefix, a hub id or the demo, never text.

A string is a place to read from. Text is given in a list, and a string that looks like text is
refused with that remedy, before anything is looked up on a network.
"""

import os
from pathlib import Path
from typing import Any

from moe_megatron.data.objects.kinds import Ask, reads
from moe_megatron.data.shards import Source, names_a_source
from moe_megatron.data.source import parse_blend
from moe_megatron.errors import DataError
from moe_megatron.files import user_path

_LONGEST = 200


@reads(lambda given: isinstance(given, os.PathLike))
def read_path(given: Any, ask: Ask) -> tuple[Source, ...]:
    """A `Path`, which is always one."""
    name = os.fspath(given)
    return (Path(os.fsdecode(name)),)


@reads(lambda given: isinstance(given, str))
def read_string(given: str, ask: Ask) -> tuple[Source, ...]:
    """A string: where to read.

    Raises:
        DataError: It is text, an address, or names nothing.
    """
    if not given.strip():
        raise DataError(f"{ask.name} is an empty string; give a path, or texts in a list.")
    there = os.path.exists(user_path(given))
    if not there and (len(given) > _LONGEST or "\n" in given or "\0" in given):
        raise DataError(
            f"{ask.name} is one text of {len(given):,} characters, not a path; put it into a "
            f"list to train on it: [{ask.name}]."
        )
    if "://" in given:
        raise DataError(
            f"{ask.name} is an address, {given!r}, and nothing is fetched from the web; download "
            "it (curl -LO ADDRESS) and give the file, or give a hub id (owner/name)."
        )
    (entry,) = parse_blend([given])
    if entry.kind == "text" and not there and not names_a_source(given):
        raise DataError(
            f"{ask.name} is the string {given!r}, and there is no file or folder of that name "
            f"(paths start at {Path.cwd()}); if it is text, put it into a list: [{given!r}]. A "
            "dataset of the hub is owner/name."
        )
    return (given,)
