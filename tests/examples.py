"""Which examples of model families `make test` computes; deep tests compute all.

Every family is a table of its own, so a mistake in one shows in an example of that family. What is
done alike for all of them shows in a few.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import pytest

from moe_megatron.testing.tiny_models import EXAMPLES

FEW = frozenset(("deepseek_v3", "gpt_oss", "granitemoe", "llama", "mixtral", "phimoe", "qwen3_moe"))
"""Examples that have, together, what any of the others has."""
FIRST = frozenset({family: name for name, (family, _) in reversed(EXAMPLES.items())}.values())
"""The first example of each family."""


def deep_but(now: Iterable[Hashable], cases: Iterable[Hashable]) -> list[Any]:
    """Parameters of a test, or tuples of them, of which those that are not among `now` are deep."""
    now = frozenset(now)
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in now else pytest.mark.deep,
        )
        for case in cases
    ]
