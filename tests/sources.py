"""The package's source, parsed once for all tests of a file."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from moe_megatron.platform.collection import without_collection


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """What `ast.walk` finds in a file."""
    with without_collection():
        return tuple(ast.walk(ast.parse(path.read_text())))


@pytest.fixture(scope="module", autouse=True)
def forget_sources() -> Iterator[None]:
    """Keep what was parsed no longer than the tests of a file: it is large."""
    yield
    nodes.cache_clear()
