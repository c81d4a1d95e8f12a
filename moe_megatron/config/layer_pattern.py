"""Megatron's spelling of which layers are of a kind: a number, or a list of 0 and 1."""

import ast
from typing import Any

from moe_megatron.config.fields import Values

_MOST = 2**16
"""Of layers, and of characters: what is longer is no pattern."""


def read_pattern(values: Values) -> Any:
    """Read a number or a list, which may be an expression as in Megatron, "([0]*1+[1]*3)*2"."""
    text = values[0].strip()
    try:
        tree = ast.parse(text[:_MOST] if text[:1] in "([" else f"[{text[:_MOST]}]", mode="eval")
        numbers = _value(tree.body)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        # Text that is no pattern is returned unchanged, so that the field's check reports it.
        return text
    if text.isdecimal():
        return numbers[0]
    return tuple(numbers) if isinstance(numbers, list) else numbers


def _value(node: ast.expr) -> Any:
    """The value of an expression of numbers, lists, + and *, never longer than a pattern is.

    Raises:
        ValueError: It has something else, or is longer.
        TypeError: Numbers and lists do not go together so.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List):
        return [_value(element) for element in node.elts]
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add | ast.Mult):
        raise ValueError("no pattern")
    left, right = _value(node.left), _value(node.right)
    adds = isinstance(node.op, ast.Add)
    one, other = (len(side) if isinstance(side, list) else abs(side) for side in (left, right))
    if (one + other if adds else one * other) > _MOST:
        raise ValueError("too long")
    return left + right if adds else left * right


def write_pattern(pattern: int | tuple[int, ...]) -> Values:
    """The value after the flag."""
    return (str(pattern) if isinstance(pattern, int) else f"[{','.join(map(str, pattern))}]",)
