"""Megatron's spelling of which layers are of a kind: a number, or a list of 0 and 1."""

import ast
from typing import Any

from moe_megatron.config.fields import Values

_ARITHMETIC = (
    ast.Expression, ast.List, ast.Constant, ast.BinOp, ast.Add, ast.Mult, ast.Load
)  # fmt: skip


def read_pattern(values: Values) -> Any:
    """Read a number or a list, which may be an expression as in Megatron, "([0]*1+[1]*3)*2"."""
    text = values[0].strip()
    try:
        tree = ast.parse(text if text[:1] in "([" else f"[{text}]", mode="eval")
        if not all(isinstance(node, _ARITHMETIC) for node in ast.walk(tree)):
            return text
        numbers = eval(compile(tree, "moe-layer-freq", "eval"), {"__builtins__": {}})
    except (SyntaxError, TypeError):
        # Text that is no pattern is returned unchanged, so that the field's check reports it.
        return text
    if text.isdecimal():
        return numbers[0]
    return tuple(numbers) if isinstance(numbers, list) else numbers


def write_pattern(pattern: int | tuple[int, ...]) -> Values:
    """The value after the flag."""
    return (str(pattern) if isinstance(pattern, int) else f"[{','.join(map(str, pattern))}]",)
